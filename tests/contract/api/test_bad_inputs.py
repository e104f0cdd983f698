"""Bad inputs and the sentence each is answered with: never a 500, never a trace, always a problem document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.api.yard import MISSING, ApiYard

pytestmark = [pytest.mark.contract]
JSON = {"Content-Type": "application/json"}
GOOD = '{"algorithm":"sft","model_path":"org/m","train_data_path":"%s"'

RAW: list[tuple[str, bytes, dict[str, str], int, str, str | None]] = [
    # name, what follows the good fields or the whole body, headers, status, code of problem or first error, field
    ("unknown field", b',"learning_rte":1}', JSON, 422, "unknown_field", "learning_rte"),
    ("NaN", b',"learning_rate":NaN}', JSON, 422, "not_finite", "learning_rate"),
    ("-Infinity", b',"learning_rate":-Infinity}', JSON, 422, "not_finite", "learning_rate"),
    ("1e999", b',"learning_rate":1e999}', JSON, 422, "not_finite", "learning_rate"),
    ("text for number", b',"max_steps":"5"}', JSON, 422, "wrong_type", "max_steps"),
    ("true for number", b',"max_steps":true}', JSON, 422, "wrong_type", "max_steps"),
    ("float for whole", b',"max_steps":5.5}', JSON, 422, "wrong_type", "max_steps"),
    ("2**70", b',"max_steps":1180591620717411303424}', JSON, 422, "out_of_range", "max_steps"),
    ("5,000 digits", b',"max_steps":' + b"9" * 5000 + b"}", JSON, 422, "out_of_range", "max_steps"),
    ("duplicate key", b',"algorithm":"dpo"}', JSON, 400, "duplicate_key", None),
    ("NUL", b',"name":"a\\u0000b"}', JSON, 422, "invalid_characters", "name"),
    ("newline", b',"name":"a\\nb"}', JSON, 422, "invalid_characters", "name"),
    ("ANSI", b',"name":"\\u001b[31m"}', JSON, 422, "invalid_characters", "name"),
    ("RTL override", b',"name":"\\u202eevil"}', JSON, 422, "invalid_characters", "name"),
    ("lone surrogate", b',"name":"\\ud800"}', JSON, 400, "invalid_encoding", None),
    ("invalid UTF-8", b',"name":"\xff"}', JSON, 400, "invalid_encoding", None),
    ("truncated", b",", JSON, 400, "json_invalid", None),
    ("text/plain", b"}", {"Content-Type": "text/plain"}, 415, "content_type", None),
    ("no content type", b"}", {}, 415, "content_type", None),
    ("gzip", b"}", JSON | {"Content-Encoding": "gzip"}, 415, "encoding_unsupported", None),
    ("empty key", b"}", JSON | {"Idempotency-Key": " "}, 422, "invalid", "Idempotency-Key"),
    ("long key", b"}", JSON | {"Idempotency-Key": "k" * 256}, 422, "invalid", "Idempotency-Key"),
    ("secret in an error", b',"secrets":{"HF_TOKEN":5}}', JSON, 422, "wrong_type", "secrets.HF_TOKEN"),
]  # fmt: skip
WHOLE: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 422, "required"),
    ("list", b"[]", 422, "wrong_type"),
    ("deep", b"[" * 100_000, 400, "json_too_deep"),
    ("deep objects", b'{"a":' * 200 + b"1" + b"}" * 200, 400, "json_too_deep"),
    ("garbage", bytes(range(128, 256)), 400, "invalid_encoding"),
    ("null", b"null", 422, "wrong_type"),
    ("too large", b'{"name":"' + b"x" * (1 << 20) + b'"}', 413, "body_too_large"),
]


def first_code(problem: dict[str, Any]) -> str:
    errors = problem.get("errors")
    return str(errors[0]["code"]) if errors else str(problem["code"])


def check_problem(reply: Any) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    problem: dict[str, Any] = json.loads(reply.content)
    assert {"type", "title", "status", "detail", "code", "request_id", "instance"} <= set(problem)
    assert problem["status"] == reply.status_code
    assert "Traceback" not in reply.text
    return problem


async def test_bad_bodies(yard: ApiYard) -> None:
    for name, tail, headers, status, code, field in RAW:
        body = (GOOD % yard.data).encode() + tail
        for path in ("/api/v1/jobs/", "/api/v1/jobs:validate"):
            if "Idempotency-Key" in headers and path.endswith("validate"):
                continue
            reply = await yard.http.post(path, content=body, headers=headers)
            problem = check_problem(reply)
            assert reply.status_code == status, (name, problem)
            assert code in {first_code(problem), problem["code"]}, (name, problem)
            if field:
                assert field in [error["field"] for error in problem["errors"]], (name, problem)
    assert (await yard.http.get("/api/v1/jobs/")).json()["items"] == []


async def test_bad_documents(yard: ApiYard) -> None:
    for name, body, status, code in WHOLE:
        reply = await yard.http.post("/api/v1/jobs/", content=body, headers=JSON)
        problem = check_problem(reply)
        assert (reply.status_code, first_code(problem)) == (status, code), (name, problem)


async def test_an_endless_body_is_cut(yard: ApiYard) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 65_536
            yield b" " * 65_536

    reply = await yard.http.post("/api/v1/jobs/", content=endless(), headers=JSON)
    assert check_problem(reply)["code"] == "body_too_large"
    assert sent <= (1 << 20) + 2 * 65_536


QUERIES = [
    ("limit=0", "limit"),
    ("limit=-1", "limit"),
    ("limit=1000000000", "limit"),
    ("limit=x", "limit"),
    ("sort=uuid;drop table job", "sort"),
    ("sort=-nothing", "sort"),
    ("status=DONE", "status"),
    ("algorithm=rlhf", "algorithm"),
    ("after=forged", "after"),
    ("filter=status", "filter"),
    ("filter=status=", "filter"),
    ("filter=(status=RUNNING", "filter"),
    ("filter=status=RUNNING)", "filter"),
    ("filter=status=DONE", "filter"),
    ("filter=learning_rate>1", "filter"),
    ("filter=config.learning_rte>1", "filter"),
    ("filter=config.ssh_password=x", "filter"),
    ("filter=config.learning_rate>abc", "filter"),
    ("filter=config.learning_rate>nan", "filter"),
    ("filter=config.tags=x", "filter"),
    ("filter=priority:5", "filter"),
    ("filter=created_at>yesterday", "filter"),
    ("filter=" + "(" * 60 + "status=RUNNING" + ")" * 60, "filter"),
    ("filter=" + "NOT " * 200 + "status=RUNNING", "filter"),
    ("filter=" + " AND ".join(["attempt=1"] * 60), "filter"),
    ("filter=" + "a" * 2000, "filter"),
    ('filter="quoted"="x"', "filter"),
]


async def test_bad_queries(both: ApiYard) -> None:
    for query, field in QUERIES:
        reply = await both.http.get(f"/api/v1/jobs/?{query}")
        problem = check_problem(reply)
        assert reply.status_code == 422, query
        assert problem["errors"][0]["field"] == field, query


async def test_any_text_can_be_searched(both: ApiYard) -> None:
    for text in ["%", "_", "\\", "'", '"', "*", "🚂", "\u202e", "a" * 200]:
        reply = await both.http.get("/api/v1/jobs/", params={"q": text})
        assert reply.status_code == 200, reply.text
    for path in ("/api/v1/jobs/?q=%00", "/api/v1/jobs/?after=%00", "/api/v1/hosts/%00", "/%00"):
        reply = await both.http.get(path)
        assert (reply.status_code, check_problem(reply)["code"]) == (422, "invalid_characters")


ADDRESSES = [
    ("GET", "/api/v1/jobs/not-a-uuid", 404, "job_not_found"),
    ("GET", "/api/v1/jobs/..%2f..%2fetc", 404, "not_found"),
    ("GET", f"/api/v1/jobs/{MISSING}", 404, "job_not_found"),
    ("POST", f"/api/v1/jobs/{MISSING}/cancel", 404, "job_not_found"),
    ("POST", f"/api/v1/jobs/{MISSING}/explode", 404, "not_found"),
    ("DELETE", f"/api/v1/jobs/{MISSING}", 404, "job_not_found"),
    ("GET", f"/api/v1/jobs/{MISSING}/metrics", 404, "job_not_found"),
    ("GET", f"/api/v1/jobs/{MISSING}/checkpoints/x/download", 422, "invalid"),
    ("GET", f"/api/v1/jobs/{MISSING}/checkpoints/1/download", 404, "job_not_found"),
    ("PUT", "/api/v1/jobs/", 405, "method_not_allowed"),
    ("GET", "/nothing", 404, "not_found"),
    ("GET", "/api/v1/hosts/nobody", 404, "not_found"),
    ("POST", "/api/v1/hosts/nobody/drain", 404, "not_found"),
]


async def test_wrong_addresses(yard: ApiYard) -> None:
    for method, path, status, code in ADDRESSES:
        reply = await yard.http.request(method, path)
        assert (reply.status_code, check_problem(reply)["code"]) == (status, code), path


async def test_a_defect_of_ours_is_a_500_without_a_trace(yard: ApiYard) -> None:
    yard.main.close()
    reply = await yard.http.get("/api/v1/jobs/", headers={"X-Request-Id": "mine-1"})
    assert reply.status_code == 500
    assert check_problem(reply)["request_id"] == reply.headers["x-request-id"] == "mine-1"


async def test_problems_speak_the_readers_language(yard: ApiYard) -> None:
    for accept, sign in [
        ("zh-CN,zh;q=0.9,en;q=0.8", "不是"),
        ("en;q=0.5, zh;q=0.9", "不是"),
        ("en-US,zh;q=0.5", "There is no job"),
        ("fr, *;q=0.1", "There is no job"),
        ("zh;q=0", "There is no job"),
        ("", "There is no job"),
    ]:
        headers = {"Accept-Language": accept}
        detail = (await yard.http.get("/api/v1/jobs/x", headers=headers)).json()["detail"]
        wanted = "不存在" if sign == "不是" else sign
        assert wanted in detail, accept
    reply = await yard.http.post(
        "/api/v1/jobs/", json={"algorithm": "sft", "x": 1}, headers={"Accept-Language": "zh"}
    )
    assert "缺少" in reply.json()["detail"] or "不是" in reply.json()["detail"]
    reply = await yard.http.get("/api/v1/jobs/?limit=0", headers={"Accept-Language": "zh"})
    assert reply.json()["errors"][0]["message"] == "limit 应不小于 1。"
