"""The whole service with judges, against a provider that behaves like DashScope on a bad day. Real HTTP on both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from shared.rewards.scores import ScoreResponse
from tests.conftest import PATIENCE
from tests.integration.reward.conftest import Service
from tests.provider.process import MockProvider
from tests.provider.server import KEY, score_of

pytestmark = pytest.mark.integration
PRICES = {"*": {"input": 0.8, "output": 2.0}}
DEAD = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProvider]:
    with MockProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("judges")
    with Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as running:
        yield running


@pytest.fixture
def provider(service: Service, mock: MockProvider) -> str:
    """A provider of its own for each test: no pace, breaker or budget is inherited."""
    name = f"p{next(_numbers)}"
    configure(service, name, mock.base)
    mock.behave()
    return name


_numbers = iter(range(1000))


def configure(
    service: Service, name: str, base: str, key: str | None = KEY, **more: Any
) -> dict[str, Any]:
    body = {"name": name, "api_base": base, "prices": PRICES, "daily_budget": None} | more
    if key is not None:
        body["api_key"] = key
    answer = service.client.put(f"/v1/providers/{name}", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def ask(
    service: Service,
    provider: str,
    texts: list[str],
    options: dict[str, Any] | None = None,
    **spec: Any,
) -> ScoreResponse:
    body = {
        "reward": {"type": "judge", "provider": provider} | spec,
        "items": [{"id": str(n), "prompt": "task", "completion": t} for n, t in enumerate(texts)],
        "options": {"timeout_s": 120.0} | (options or {}),
    }
    answer = service.client.post("/v1/score", content=json.dumps(body), timeout=180)
    assert answer.status_code == 200, answer.text
    return ScoreResponse.model_validate_json(answer.content)


def check_truth(found: ScoreResponse, texts: list[str]) -> None:
    """No fabricated score: a reward is what the judge said of exactly this completion, or there is none and a reason."""
    for result, text in zip(found.results, texts, strict=True):
        if result.status == "ok":
            assert result.reward == pytest.approx(score_of(text) / 10)
        else:
            assert result.reward is None
            assert result.error is not None


def test_a_thousand_items_with_a_hundred_distinct_cost_a_hundred_calls(
    service: Service, mock: MockProvider, provider: str
) -> None:
    texts = [f"same {n % 100} {provider}" for n in range(1000)]
    found = ask(service, provider, texts)
    check_truth(found, texts)
    stats = mock.stats()
    assert (stats["total"], found.summary.ok) == (100, 1000)
    assert found.summary.cost == pytest.approx(stats["billed"])
    assert found.summary.deduplicated == 900
    again = ask(service, provider, texts)
    assert (mock.stats()["total"], again.summary.cached, again.summary.cost) == (100, 1000, 0.0)
    refreshed = ask(service, provider, texts[:1], {"cache": "refresh"})
    assert (mock.stats()["total"], refreshed.summary.cached) == (101, 0)


FAULTS = {
    "rate": 0.006, "burst": 0.002, "tokens": 0.002, "500": 0.05, "502": 0.02, "503": 0.03, "reset": 0.03, "garbage": 0.02,
    "html": 0.02, "no_choices": 0.01, "bad_json": 0.03, "out_of_range": 0.02, "nan": 0.02, "prose": 0.02, "filter": 0.02,
    "large": 0.001,
}  # fmt: skip


@pytest.mark.parametrize(
    "count", [400, pytest.param(10_000, marks=pytest.mark.nightly)], ids=["short", "long"]
)
def test_a_bad_day_fabricates_nothing(
    service: Service, mock: MockProvider, provider: str, count: int
) -> None:
    mock.behave(faults=FAULTS, seed=7, rps=150)
    budget = count * 0.002
    texts = [f"answer {n} {provider}" for n in range(count)]
    found = []
    for start in range(0, count, 1000):
        part = texts[start : start + 1000]
        asked = ask(
            service,
            provider,
            part,
            {"job_uuid": provider, "job_max_cost": budget, "timeout_s": 170.0},
        )
        check_truth(asked, part)
        found += list(asked.results)
    stats = mock.stats()
    print(Counter(str(r.error.code) if r.error else "ok" for r in found), stats["calls"])
    assert sum(r.status == "ok" for r in found) >= 0.9 * count
    assert stats["billed"] <= sum(r.cost for r in found) + 1e-9, "never less is counted than billed"
    assert stats["billed"] <= budget
    for result in found:
        if result.error is None:
            continue
        assert result.error.code in {
            "provider_rate_limited", "provider_unavailable", "content_filtered", "judge_parse_failed", "circuit_open",
        }  # fmt: skip
        if result.error.code == "content_filtered":
            assert not result.error.retryable


def test_a_filtered_completion_is_asked_once(
    service: Service, mock: MockProvider, provider: str
) -> None:
    mock.behave(faults={"filter": 1.0})
    found = ask(service, provider, ["x"])
    assert (found.results[0].error and found.results[0].error.code) == "content_filtered"
    assert found.results[0].error.provider_code == "data_inspection_failed"
    assert mock.stats()["total"] == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [("key", "provider_auth"), ("overdue", "provider_quota_exhausted"), ("bill", "provider_quota_exhausted"),
     ("exhausted", "provider_quota_exhausted"), ("free", "provider_quota_exhausted"), ("access", "provider_auth")],
)  # fmt: skip
def test_what_only_a_person_can_mend_is_not_asked_again(
    service: Service, mock: MockProvider, provider: str, fault: str, code: str
) -> None:
    mock.behave(faults={fault: 1.0})
    first = ask(service, provider, ["x"])
    assert [str(r.error.code) for r in first.results if r.error] == [code]
    assert mock.stats()["total"] == 1
    ask(service, provider, ["y", "z"])
    assert mock.stats()["total"] == 1, "not before somebody has changed something"
    mock.behave()
    configure(service, provider, mock.base)
    assert ask(service, provider, ["y"]).results[0].status == "ok"


def test_garbage_is_asked_again_and_ends_as_an_error(
    service: Service, mock: MockProvider, provider: str
) -> None:
    mock.behave(faults={"garbage": 1.0})
    found = ask(service, provider, ["x"], {"timeout_s": 60.0})
    assert (found.results[0].error and found.results[0].error.code) == "provider_unavailable"
    assert found.results[0].attempts == 4
    mock.behave(faults={"bad_json": 1.0})
    unread = ask(service, provider, ["y"])
    assert (unread.results[0].error and unread.results[0].error.code) == "judge_parse_failed"
    assert mock.stats()["total"] == 2, "one repair attempt"


def test_a_provider_that_is_down_is_left_alone(service: Service) -> None:
    configure(service, "down", DEAD)
    found = ask(service, "down", [f"t{n}" for n in range(256)], {"timeout_s": 120.0})
    codes = Counter(str(r.error.code) for r in found.results if r.error)
    assert sum(codes.values()) == 256
    assert codes["circuit_open"] >= 240
    state = service.client.get("/v1/providers/down").json()["state"]
    assert state["breaker"] == "open"
    assert state["calls"] <= 20


def test_a_hanging_provider_costs_its_deadline_and_no_more(
    service: Service, mock: MockProvider, provider: str
) -> None:
    mock.behave(faults={"hang": 1.0})
    found = ask(service, provider, ["x", "y"], {"timeout_s": 1.0})
    assert {str(r.error.code) for r in found.results if r.error} <= {
        "deadline_exceeded",
        "provider_timeout",
    }
    assert found.summary.duration_ms < 1000 + 500 * PATIENCE


def test_a_fallback_is_asked_and_said(service: Service, mock: MockProvider, provider: str) -> None:
    chain = [{"provider": provider, "model": "other"}]
    configure(service, "first", DEAD, fallback=chain)
    found = ask(service, "first", ["x"])
    check_truth(found, ["x"])
    assert found.results[0].fallback
    assert found.results[0].provider == f"{provider}/other"
    assert found.summary.fallback == 1


def test_plainer_requests_where_a_model_knows_no_schema(
    service: Service, mock: MockProvider, provider: str
) -> None:
    mock.behave(refuse_schema=True, refuse_json=True)
    found = ask(service, provider, ["x", "y", "z"])
    check_truth(found, ["x", "y", "z"])
    before = mock.stats()["total"]
    ask(service, provider, ["w"])
    assert mock.stats()["total"] == before + 1, "remembered for the model"


def test_open_models_are_told_not_to_think(service: Service, mock: MockProvider) -> None:
    configure(service, "dash", mock.base, kind="dashscope")
    mock.behave(think=True)
    check_truth(ask(service, "dash", ["x"]), ["x"])


def test_budgets_are_hard(service: Service, mock: MockProvider, provider: str) -> None:
    texts = [f"b{n}" for n in range(40)]
    options = {"job_uuid": f"job-{provider}", "job_max_cost": 0.005}
    found = ask(service, provider, texts, options)
    check_truth(found, texts)
    codes = Counter(str(r.error.code) if r.error else "ok" for r in found.results)
    assert codes["ok"] >= 1
    assert codes["budget_exceeded"] >= 1
    assert mock.stats()["billed"] <= 0.005
    assert found.summary.budget_remaining == pytest.approx(0.005 - found.summary.cost)
    more = ask(service, provider, [f"c{n}" for n in range(40)], options)
    assert mock.stats()["billed"] <= 0.005, "over all requests of the job"
    assert more.summary.ok < 40
    dollars = configure(service, "dollars", mock.base, currency="USD")
    assert dollars["currency"] == ask(service, "dollars", ["x"]).summary.currency == "USD"
    unpriced = configure(service, "unpriced", mock.base, prices={})
    assert unpriced["prices"] == {}
    refused = ask(service, "unpriced", ["x"], {"max_cost": 1.0})
    assert (refused.results[0].error and refused.results[0].error.code) == "provider_refused"


def test_duels_are_judged_in_both_orders(
    service: Service, mock: MockProvider, provider: str
) -> None:
    judge = {"type": "judge", "provider": provider}
    body = {
        "reward": {"type": "self_play", "mode": "pairwise", "by": "judge", "judge": judge},
        "items": [
            {"id": str(n), "prompt": "t", "completion": "x" * (n + 1), "group_id": "g"}
            for n in range(3)
        ],
    }
    found = ScoreResponse.model_validate_json(service.client.post("/v1/score", json=body).content)
    assert [r.reward for r in found.results] == [0.0, 0.5, 1.0], "the mock prefers the longer one"
    assert mock.stats()["total"] == 6
    mock.behave(answer='{"winner": "A", "reason": "first"}')
    biased = body | {"items": [i | {"completion": f"{i['completion']}!"} for i in body["items"]]}  # type: ignore[attr-defined]
    tied = ScoreResponse.model_validate_json(service.client.post("/v1/score", json=biased).content)
    assert [r.reward for r in tied.results] == [0.5, 0.5, 0.5], (
        "a judge that likes the first place decides nothing"
    )


def test_a_key_belongs_to_its_base(service: Service, mock: MockProvider) -> None:
    told = configure(service, "bound", mock.base)
    assert told["key_last4"] == KEY[-4:]
    assert KEY not in json.dumps(told)
    kept = configure(service, "bound", mock.base, key=None)
    assert kept["has_key"]
    moved = configure(service, "bound", mock.base + "/", key=None)
    assert not moved["has_key"], "a key is not sent to where it was not given for"
    gone = service.client.delete("/v1/providers/bound")
    assert gone.status_code == 204
    assert service.client.get("/v1/providers/bound").status_code == 404


@pytest.mark.parametrize(
    "base",
    ["http://169.254.169.254/v1", "http://100.100.100.200/v1", "https://[64:ff9b::a9fe:a9fe]/v1", "https://10.0.0.1/v1",
     "file:///etc/passwd", "gopher://127.0.0.1/", "https://user:pass@example.org/v1", "https://localhost.localdomain:1/v1?x=1"],
)  # fmt: skip
def test_forbidden_addresses(service: Service, base: str) -> None:
    body = {"name": "evil", "api_base": base, "api_key": "sk-some-key-0000"}
    answer = service.client.put("/v1/providers/evil", json=body)
    assert answer.status_code == 422
    assert "sk-some-key" not in answer.text
    assert answer.json()["errors"][0]["field"] in ("api_base", "body")


def test_a_private_judge_serves_its_job_alone(service: Service, mock: MockProvider) -> None:
    mock.behave()
    body = {"api_base": mock.base, "api_key": KEY}
    assert service.client.put("/v1/jobs/job-1/provider", json=body).status_code == 204
    assert ask(service, "job", ["mine"], {"job_uuid": "job-1"}).results[0].status == "ok"
    other = ask(service, "job", ["mine"], {"job_uuid": "job-2"})
    assert (other.results[0].error and other.results[0].error.code) == "provider_unknown"
    assert "job:job-1" not in service.client.get("/v1/providers").text


def test_canaries_tell_a_gullible_judge(
    service: Service, mock: MockProvider, provider: str
) -> None:
    mock.behave(answer='{"score": 10, "reason": "great"}')
    tried = service.client.post(f"/v1/providers/{provider}/test").json()
    assert (tried["ok"], tried["canaries_failed"]) == (False, 5)
    mock.behave(answer='{"score": 0, "reason": "empty"}')
    assert service.client.post(f"/v1/providers/{provider}/test").json()["ok"]


def test_a_stored_reward_never_changes(service: Service) -> None:
    body = {"name": "math", "reward": {"type": "math_verify"}}
    first = service.client.post("/v1/rewards", json=body)
    assert first.status_code == 201
    assert service.client.post("/v1/rewards", json=body).json()["id"] == first.json()["id"]
    changed = body | {"reward": {"type": "math_verify", "compare": "exact"}}
    second = service.client.post("/v1/rewards", json=changed).json()
    assert second["number"] == first.json()["number"] + 1
    item = {"id": "0", "completion": r"\boxed{42.0}", "solution": "42"}
    rewards = []
    for reward_id in (first.json()["id"], second["id"]):
        answer = service.client.post("/v1/score", json={"reward_id": reward_id, "items": [item]})
        rewards.append(answer.json()["results"][0]["reward"])
    assert rewards == [1.0, 0.0]
    lost = service.client.post("/v1/score", json={"reward_id": "rw_none", "items": [item]})
    assert (lost.status_code, lost.json()["code"]) == (404, "not_found")


def test_providers_rewards_verdicts_and_spending_outlive_a_restart(
    tmp_path_factory: pytest.TempPathFactory, mock: MockProvider
) -> None:
    home = tmp_path_factory.mktemp("again")
    mock.behave()
    options = {"job_uuid": "job-r", "job_max_cost": 0.003}
    with Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as first:
        configure(first, "p", mock.base)
        ask(first, "p", ["kept"], options)
        assert first.stop() == 0
    with Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as second:
        again = ask(second, "p", ["kept"], options)
        assert again.summary.cached == 1
        ask(second, "p", [f"new {n}" for n in range(40)], options)
        assert mock.stats()["billed"] <= 0.003
        second.process.kill()
        second.process.wait(10)
    with Service(home, TRAINYARD_REWARD_ALLOW_HTTP_HOSTS="127.0.0.1") as third:
        ask(third, "p", [f"newer {n}" for n in range(40)], options)
        assert mock.stats()["billed"] <= 0.003, "a kill does not fill the purse again"
