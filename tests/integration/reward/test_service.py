"""The service as its clients see it, in rules-only mode: one process, real HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.rewards.scores import ScoreResponse
from tests.conftest import PATIENCE
from tests.integration.reward.conftest import ROOT, Service

pytestmark = pytest.mark.integration
MATH = {"type": "math_verify"}


def score(service: Service, items: list[dict[str, Any]], **more: Any) -> ScoreResponse:
    body = {"reward": MATH, "items": items} | more
    answer = service.client.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    return ScoreResponse.model_validate_json(answer.content)


def item(number: int, completion: str, solution: str | None = "42") -> dict[str, Any]:
    return {"id": str(number), "completion": completion, "solution": solution}


def test_every_item_is_answered_in_order(rules: Service) -> None:
    found = score(
        rules, [item(0, r"\boxed{42}"), item(1, r"\boxed{41}"), item(2, "x"), item(3, "x", None)]
    )
    assert [r.id for r in found.results] == ["0", "1", "2", "3"]
    assert [r.reward for r in found.results] == [1.0, 0.0, 0.0, None]
    assert [r.status for r in found.results] == ["ok", "ok", "ok", "skipped"]
    assert found.results[3].error is not None
    assert (found.summary.ok, found.summary.skipped) == (3, 1)


def test_symbolic_answers_and_groups(rules: Service) -> None:
    fuzzy = {"type": "math_verify", "compare": "fuzzy"}
    found = score(rules, [item(0, r"\boxed{(x+1)^2}", "x^2+2x+1")], reward=fuzzy)
    assert found.results[0].reward == 1.0
    group = [item(n, rf"\boxed{{{a}}}", None) | {"group_id": "g"} for n, a in enumerate("112")]
    voted = score(rules, group, reward={"type": "self_play"})
    assert [r.reward for r in voted.results] == [1.0, 1.0, 0.0]
    scored = [i | {"metadata": {"score": float(n)}} for n, i in enumerate(group)]
    duels = score(rules, scored, reward={"type": "self_play", "mode": "pairwise"})
    assert [r.reward for r in duels.results] == [0.0, 0.5, 1.0]


def test_messages_are_scored_like_text(rules: Service) -> None:
    turn = [{"role": "assistant", "content": r"\boxed{42}"}]
    found = score(rules, [{"id": "0", "completion": turn, "solution": "42"}])
    assert found.results[0].reward == 1.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reward": MATH, "items": []}, "items"),
        ({"items": [item(0, "x")]}, "reward"),
        ({"reward": MATH, "reward_id": "r", "items": [item(0, "x")]}, "reward"),
        ({"reward": {"type": "magic"}, "items": [item(0, "x")]}, "reward"),
        ({"reward": MATH | {"compare": "x"}, "items": [item(0, "x")]}, "reward.compare"),
        ({"reward": MATH, "items": [{"id": "0", "completion": 5}]}, "items.0.completion"),
        ({"reward": MATH, "items": [item(0, "x") | {"typo": 1}]}, "items.0.typo"),
        ({"reward": MATH, "items": [item(0, "x"), item(0, "y")]}, "items"),
        ({"reward": {"type": "self_play"}, "items": [item(0, "x")]}, "items.group_id"),
        ({"reward": MATH, "items": [item(0, "x")], "options": {"timeout_s": 0.0}}, "options.timeout_s"),
        ({"reward": {"type": "format_check", "preset": "regex"}, "items": [item(0, "x")]}, "reward"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_told_by_field(rules: Service, body: dict[str, Any], field: str) -> None:
    for language in ("en", "zh"):
        answer = rules.client.post("/v1/score", json=body, headers={"Accept-Language": language})
        told = answer.json()
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert field in [e["field"] for e in told["errors"]], told
        assert (any("\u4e00" <= c <= "\u9fff" for c in told["detail"])) == (language == "zh")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"reward": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_what_is_no_request_is_told_so(rules: Service, body: bytes) -> None:
    answer = rules.client.post("/v1/score", content=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid"


def test_strangers_are_refused(rules: Service) -> None:
    ask = rules.client.get
    assert ask("/metrics", headers={"Host": "evil.example"}).status_code == 400
    assert ask("/metrics", headers={"Origin": "https://evil.example"}).status_code == 403
    assert ask("/nothing").status_code == 404
    assert ask("/v1/score").status_code == 405
    big = rules.client.post("/v1/score", content=b" " * (33 * 1024**2))
    assert (big.status_code, big.json()["code"]) == (413, "body_too_large")


def test_a_repeat_gets_the_same_bytes(rules: Service) -> None:
    body = json.dumps({"reward": MATH, "items": [item(0, r"\boxed{42}")]})
    key = {"Idempotency-Key": "k1"}
    first = rules.client.post("/v1/score", content=body, headers=key)
    again = rules.client.post("/v1/score", content=body, headers=key)
    assert first.content == again.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    other = rules.client.post("/v1/score", content=body.replace("42", "43"), headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_all_or_nothing_where_asked(rules: Service) -> None:
    body = {"reward": MATH, "items": [item(0, r"\boxed{1}", None)], "options": {"fail": "all"}}
    answer = rules.client.post("/v1/score", json=body)
    assert (answer.status_code, answer.json()["code"]) == (502, "no_verdict")


def test_judges_are_not_here_and_no_zero_either(rules: Service) -> None:
    found = score(rules, [item(0, "x")], reward={"type": "judge", "provider": "p"})
    assert found.results[0].reward is None
    assert found.results[0].error is not None
    assert found.results[0].error.code == "provider_unknown"


def test_openrlhf_asks_unchanged(rules: Service) -> None:
    prompt = "<|im_start|>user\n40+2<|im_end|>\n<|im_start|>assistant\n"
    body = {
        "query": [prompt + r"\boxed{42}<|im_end|>", prompt + r"\boxed{41}<|im_end|>"],
        "prompts": [prompt, prompt],
        "labels": ["42", "42"],
    }
    answer = rules.client.post("/get_reward", json=body)
    assert answer.json() == {"rewards": [1.0, 0.0], "scores": [1.0, 0.0], "extra_logs": {}}
    unjudged = rules.client.post("/get_reward", json={"query": ["x"], "prompts": [], "labels": []})
    assert unjudged.status_code == 422, "no verdict is no zero"


def test_a_reward_is_checked_without_scoring(rules: Service) -> None:
    good = rules.client.post("/v1/score:validate", json=MATH).json()
    assert good["valid"]
    assert good["reward"]["compare"] == "numeric"
    bad = {"type": "rule_based", "rules": [{"name": "a", "rule": "regex", "pattern": "(a"}]}
    told = rules.client.post("/v1/score:validate", json=bad)
    assert told.json()["errors"][0]["field"] == "reward.rules.0.pattern"


def test_960_items_at_once_time_out_nowhere(rules: Service) -> None:
    """Time in the queue is not the item's (verifiers, issue 831)."""
    fuzzy = {"type": "math_verify", "compare": "fuzzy"}
    items = [item(n, rf"\boxed{{x+{n % 7}}}", f"{n % 7}+x") for n in range(960)]
    found = score(rules, items, reward=fuzzy, options={"item_timeout_s": 5.0, "timeout_s": 280.0})
    assert {r.reward for r in found.results} == {1.0}


def test_a_late_batch_says_so(rules: Service) -> None:
    fuzzy = {"type": "math_verify", "compare": "fuzzy"}
    items = [item(n, rf"\boxed{{\sqrt{{x+{n}}}}}", f"(x+{n})^(1/2)+0y") for n in range(600)]
    items.append(item(999, r"\boxed{42}"))
    began = time.monotonic()
    found = score(rules, items, reward=fuzzy, options={"timeout_s": 0.3})
    assert time.monotonic() - began < 5 * PATIENCE
    assert found.results[-1].reward == 1.0
    late = [r for r in found.results if r.error and r.error.code == "deadline_exceeded"]
    assert late
    assert all(r.reward is None and r.error and r.error.retryable for r in late)


def test_metrics_count_what_was_scored(rules: Service) -> None:
    score(rules, [item(0, r"\boxed{42}")])
    text = rules.client.get("/metrics").text
    assert 'trainyard_reward_items_total{code="",reward="math_verify",status="ok"}' in text
    assert rules.client.get("/readyz").json()["mode"] == "rules_only"


def test_others_need_a_token(tmp_path: Path) -> None:
    env = os.environ | {"TRAINYARD_HOME": str(tmp_path), "TRAINYARD_REWARD_HOST": "0.0.0.0"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services.reward"], env=env, cwd=ROOT,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "TRAINYARD_API_TOKEN" in done.stderr


def test_a_stop_ends_all_of_it(tmp_path: Path) -> None:
    with Service(tmp_path, TRAINYARD_API_TOKEN="secret-token") as service:
        refused = service.client.post("/v1/score", json={})
        assert (refused.status_code, refused.json()["code"]) == (401, "auth_required")
        service.client.headers["Authorization"] = "Bearer secret-token"
        fuzzy = {"type": "math_verify", "compare": "fuzzy"}
        body = {"reward": fuzzy, "items": [item(0, r"\boxed{x+1}", "1+x")]}
        assert service.client.post("/v1/score", json=body).json()["results"][0]["reward"] == 1.0
        verifiers = psutil.Process(service.process.pid).children(recursive=True)
        assert verifiers
        assert service.stop() == 0
        _, left = psutil.wait_procs(verifiers, timeout=60)
        assert left == []


def test_the_openapi_document_says_what_each_route_takes(rules: Service) -> None:
    document = rules.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            if verb in ("post", "put"):
                assert operation["requestBody"]["content"]["application/json"]["schema"], path
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named <= set(schemas)
    assert {"MathVerify", "Judge", "Composite", "ItemResult"} <= set(schemas)
