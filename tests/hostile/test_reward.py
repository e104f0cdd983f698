"""The reward service against hostile requests, every operation of it: a clear refusal, and never a 5xx."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.conftest import PATIENCE
from tests.hostile.target import SECONDS_AT_MOST, check_refusal
from tests.integration.reward.conftest import Service

pytestmark = [pytest.mark.e2e]
GROWTH_MIB = 200
JSON = {"Content-Type": "application/json"}
RULE = {"type": "math_verify"}
ITEM = {"id": "1", "prompt": "p", "completion": "\\boxed{2}", "solution": "2"}
SCORE: dict[str, Any] = {"items": [ITEM], "reward": RULE}
PRIVATE: dict[str, Any] = {"api_base": "https://judge.example/v1"}
PROVIDER = PRIVATE | {"name": "judge"}
BODIES: dict[str, Any] = {
    "POST /v1/score": SCORE,
    "POST /v1/score:validate": RULE,
    "POST /get_reward": {"query": ["a"], "prompts": ["a"], "labels": ["1"]},
    "PUT /v1/providers/{name}": PROVIDER,
    "PUT /v1/jobs/{job_uuid}/provider": PRIVATE,
    "POST /v1/rewards": {"name": "r", "reward": RULE},
}
BAD_BASES = (
    "file:///etc/passwd", "gopher://x/", "http://127.0.0.1/v1", "http://169.254.169.254/latest", "https://100.100.100.200/",
    "https://[64:ff9b::a9fe:a9fe]/", "https://[::1]/v1", "https://u:p@judge.example/v1", "https://2130706433/", "https://localhost/v1",
    "https://0x7f.1/", "javascript:alert(1)", "https://", "", "x" * 5000, "https://judge.example/\r\nX: y",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("reward"))
    yield running
    assert running.stop() == 0


def operations(service: Service) -> Iterator[tuple[str, str]]:
    paths = service.client.get("/openapi.json").json()["paths"]
    for path, item in paths.items():
        for method in item:
            yield method.upper(), path


def filled(path: str) -> str:
    return path.replace("{name}", "judge").replace("{job_uuid}", "j")


def mib(service: Service) -> float:
    return float(psutil.Process(service.process.pid).memory_info().rss) / (1 << 20)


def refused(
    service: Service, method: str, path: str, content: bytes | None, **headers: str
) -> dict[str, Any]:
    """Send it in both languages and return the English refusal."""
    problem: dict[str, Any] = {}
    for language in ("zh", "en"):
        began = time.monotonic()
        sent = (JSON if content is not None else {}) | {"Accept-Language": language} | headers
        reply = service.client.request(method, path, content=content, headers=sent)
        assert time.monotonic() - began < SECONDS_AT_MOST, path
        problem = check_refusal(reply, chinese=language == "zh")
    return problem


def test_every_operation_refuses_foreign_pages(service: Service) -> None:
    found = list(operations(service))
    assert {f"{m} {p}" for m, p in found if m in {"PUT", "POST"}} - set(BODIES) == {
        "POST /v1/providers/{name}/test"
    }
    for method, path in found:
        for headers, code in (
            ({"Host": "evil.example"}, "host_not_allowed"),
            ({"Origin": "https://evil.example"}, "origin_not_allowed"),
            ({"Origin": "null"}, "origin_not_allowed"),
        ):
            told = refused(service, method, filled(path), None, **headers)
            assert told["code"] == code, (method, path)
        other = "PATCH" if method != "PATCH" else "PUT"
        assert refused(service, other, filled(path), None)["code"] == "method_not_allowed"


RAW: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("null", b"null"),
    ("a list", b"[]"),
    ("a number", b"5"),
    ("cut off", b'{"'),
    ("deep", b'{"a":' * 100_000),
    ("deep lists", b"[" * 100_000 + b"]" * 100_000),
    ("invalid UTF-8", b'{"name":"\xff"}'),
    ("lone surrogate", b'{"name":"\\ud800"}'),
    ("bytes", bytes(range(256))),
    ("an unknown field", b'{"learning_rte":1}'),
    ("5,000 digits", b'{"name":' + b"9" * 5000 + b"}"),
]


@pytest.mark.parametrize("body", [r[1] for r in RAW], ids=[r[0] for r in RAW])
def test_bad_documents(service: Service, body: bytes) -> None:
    for operation in BODIES:
        method, path = operation.split()
        refused(service, method, filled(path), body)
    assert service.client.get("/readyz").status_code in (200, 503)


def item(**fields: Any) -> dict[str, Any]:
    return SCORE | {"items": [ITEM | fields]}


SCORES: list[tuple[str, Any]] = [
    ("no items", SCORE | {"items": []}),
    ("items text", SCORE | {"items": "x"}),
    ("an item number", SCORE | {"items": [5]}),
    ("doubled ids", SCORE | {"items": [ITEM, ITEM]}),
    ("50,000 items", SCORE | {"items": [ITEM | {"id": str(i)} for i in range(50_000)]}),
    ("completion number", item(completion=5)),
    ("completion of objects", item(completion={"a": 1})),
    ("id of 10 KB", item(id="x" * 10_000)),
    ("unknown in an item", item(answr="2")),
    ("no reward", {"items": [ITEM]}),
    ("two rewards", SCORE | {"reward_id": "x"}),
    ("a reward that is not there", {"items": [ITEM], "reward_id": "../../keys"}),
    ("a reward of no type", SCORE | {"reward": {}}),
    ("a reward of another type", SCORE | {"reward": {"type": "python", "code": "import os"}}),
    ("a pattern that is none", SCORE | {"reward": {"type": "format_check", "pattern": "(" * 200}}),
    ("a schema that is none", SCORE | {"reward": {"type": "format_check", "json_schema": {"type": 5}}}),
]  # fmt: skip


@pytest.mark.parametrize("body", [s[1] for s in SCORES], ids=[s[0] for s in SCORES])
def test_bad_batches(service: Service, body: Any) -> None:
    before = mib(service)
    refused(service, "POST", "/v1/score", json.dumps(body).encode())
    assert mib(service) - before < GROWTH_MIB


def test_a_reward_that_nests_without_end_is_refused(service: Service) -> None:
    nested: dict[str, Any] = RULE
    for n in range(200):
        nested = {"type": "composite", "parts": [{"name": f"p{n}", "weight": 1, "reward": nested}]}
    refused(service, "POST", "/v1/score:validate", json.dumps(nested).encode())


@pytest.mark.parametrize("base", BAD_BASES, ids=range(len(BAD_BASES)))
def test_a_judge_cannot_be_an_address_within(service: Service, base: str) -> None:
    for path, good in (("/v1/providers/judge", PROVIDER), ("/v1/jobs/j/provider", PRIVATE)):
        body = good | {"api_base": base, "api_key": "CANARY-judge"}
        told = refused(service, "PUT", path, json.dumps(body).encode())
        assert "CANARY" not in str(told)
        assert len(told["errors"]) == 1
        assert told["errors"][0]["code"] != "missing"
    assert service.client.get("/v1/providers").json()["items"] == []


def test_a_body_of_50_mb_is_refused(service: Service) -> None:
    before = mib(service)
    body = b'{"items":"' + b"x" * 50_000_000 + b'"}'
    for operation in BODIES:
        method, path = operation.split()
        assert refused(service, method, filled(path), body)["code"] == "body_too_large"
    assert mib(service) - before < GROWTH_MIB


ANSWERS = ["\\boxed{9^{9^{9^9}}}", "\\boxed{" + "(" * 3000, "\\boxed{100000000!}", "9" * 1_000_000, "\\boxed{" * 5000, "", "\0", "\\boxed{__import__('os').system('touch canary')}"]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_a_hostile_answer_gets_no_reward_and_delays_nobody(service: Service, answer: str) -> None:
    items = [ITEM | {"id": "bad", "completion": answer}, ITEM | {"id": "good"}]
    began = time.monotonic()
    reply = service.client.post("/v1/score", json=SCORE | {"items": items})
    assert time.monotonic() - began < 20 * PATIENCE
    assert reply.status_code == 200, reply.text
    bad, good = reply.json()["results"]
    assert good["reward"] == 1.0
    assert bad["reward"] in (None, 0.0), bad
