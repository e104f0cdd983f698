"""Every operation of the OpenAPI document against hostile requests: a clear refusal, and nothing written."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.hostile.rest_cases import BODIES, CASES, JSON, Case, content, every
from tests.hostile.target import SECONDS_AT_MOST, Target, check_refusal

pytestmark = [pytest.mark.e2e]
MISSING = "00000000-0000-7000-8000-000000000000"
ALL = [(name, case) for name, own in CASES.items() for case in (*own, *every(name))]
GROWTH_MIB = 200


def send(target: Target, operation: str, case: Case, language: str) -> Any:
    method, template = operation.split()
    fill = target.fill | {"waiting": target.waiting}
    path = case.path or template
    for name, value in fill.items():
        path = path.replace("{" + name + "}", value)
    body = content(case.body)
    if body is not None:
        known = {"data": str(target.data), "ended": target.ended, "missing": MISSING}
        for name, value in known.items():
            body = body.replace(b"{" + name.encode() + b"}", value.encode())
    headers = (JSON if body is not None else {}) | {"Accept-Language": language} | case.headers
    url = path + (f"?{case.query}" if case.query else "")
    began = time.monotonic()
    reply = target.http.request(method, url, content=body, headers=headers)
    assert time.monotonic() - began < SECONDS_AT_MOST
    return reply


@pytest.mark.parametrize(
    ("operation", "case"), ALL, ids=[f"{name} {case.name}" for name, case in ALL]
)
def test_is_refused_clearly_and_writes_nothing(
    unharmed: Target, operation: str, case: Case
) -> None:
    for language in ("en", "zh-CN"):
        reply = send(unharmed, operation, case, language)
        problem = check_refusal(reply, chinese=language != "en")
        assert reply.status_code == case.status, problem
        codes = {problem["code"], *(error["code"] for error in problem.get("errors", []))}
        assert not case.code or case.code in codes, problem
        fields = [error["field"] for error in problem.get("errors", [])]
        assert case.field is None or any(
            f == case.field or f.startswith(f"{case.field}.") for f in fields
        ), problem


def test_no_operation_is_left_out(target: Target) -> None:
    paths = target.document()["paths"]
    operations = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    assert operations == set(CASES)
    with_body = {
        f"{method.upper()} {path}"
        for path, item in paths.items()
        for method, operation in item.items()
        if "requestBody" in operation
    }
    assert with_body == set(BODIES)
    assert len(ALL) >= 400


def test_every_other_method_is_refused(unharmed: Target) -> None:
    for path, item in unharmed.document()["paths"].items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - {m.upper() for m in item}:
            reply = unharmed.http.request(method, unharmed.path(path))
            problem = check_refusal(reply)
            # `GET /api/v1/hosts/join` asks for a host of that name.
            named = "/hosts/join" in path and method in {"GET", "DELETE"}
            known = (404, "not_found") if named else (405, "method_not_allowed")
            assert (reply.status_code, problem["code"]) == known, path
            assert named or reply.headers["allow"]


def test_a_body_of_50_mb_is_refused_before_it_is_read(unharmed: Target) -> None:
    before = unharmed.api_mib()
    body = json.dumps({"name": "x" * 50_000_000}).encode()
    for operation in BODIES:
        method, path = operation.split()
        reply = unharmed.http.request(method, unharmed.path(path), content=body, headers=JSON)
        assert check_refusal(reply)["code"] == "body_too_large"
    assert unharmed.api_mib() - before < GROWTH_MIB


def test_the_api_has_not_grown(target: Target) -> None:
    before = target.api_mib()
    bodies = [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'"' + b"\\u0041" * 170_000 + b'"',
        b"9" * 1_000_000,
    ]
    bodies += [
        json.dumps({f"k{i}": i for i in range(60_000)}).encode(),
        b"[" + b"1," * 500_000 + b"1]",
    ]
    for body in bodies:
        began = time.monotonic()
        reply = target.http.post("/api/v1/jobs/", content=body, headers=JSON)
        check_refusal(reply)
        assert time.monotonic() - began < SECONDS_AT_MOST, body[:20]
        assert len(reply.content) < 200_000
    assert target.api_mib() - before < GROWTH_MIB
