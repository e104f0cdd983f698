"""Hostile dataset files and paths, asked of the real api: what is wrong and where, in bounded time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from shared.preflight.dataset import check_dataset
from tests.hostile.data_files import BOM, FILES, GOOD, Make
from tests.hostile.target import SECONDS_AT_MOST, Target, check_refusal

pytestmark = [pytest.mark.e2e]
GROWTH_MIB = 200
VALIDATE = "/api/v1/jobs:validate"


def refused(target: Target, path: Path | str, **changes: Any) -> dict[str, Any]:
    """Submit a job with this data in both languages and return the English refusal."""
    found: dict[str, Any] = {}
    for language in ("zh", "en"):
        began = time.monotonic()
        reply = target.http.post(
            "/api/v1/jobs/",
            json=target.body(train_data_path=str(path)) | changes,
            headers={"Accept-Language": language},
        )
        assert time.monotonic() - began < SECONDS_AT_MOST
        found = check_refusal(reply, chinese=language == "zh")
        assert reply.status_code == 422
        assert {error["field"] for error in found["errors"]} == {"train_data_path"}
    return found


@pytest.mark.parametrize(
    ("name", "content", "code", "line"), [f[1:] for f in FILES], ids=[f[0] for f in FILES]
)
def test_a_bad_file_is_refused_with_its_place(
    unharmed: Target, tmp_path: Path, name: str, content: Make | bytes, code: str, line: int | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content())
    before = unharmed.api_mib()
    problem = refused(unharmed, path)
    if code:
        assert code in [error["code"] for error in problem["errors"]], problem
    if line is not None:
        assert any(
            f"ine {line} " in e["message"] or f"ine {line}:" in e["message"] or f"ine {line}," in e["message"] or f"ine {line})" in e["message"]
            for e in problem["errors"]
        ), problem  # fmt: skip
    assert unharmed.api_mib() - before < GROWTH_MIB


def test_what_is_harmless_is_taken(target: Target, tmp_path: Path) -> None:
    for name, content in [
        ("bom.jsonl", BOM + GOOD),
        ("crlf.jsonl", GOOD.replace(b"\n", b"\r\n")),
        ("blank.jsonl", b"\n" + GOOD + b"\n\n" + GOOD),
        ("more.jsonl", b'{"prompt":"a","response":"b","extra":{"deep":[1,2]}}\n'),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        reply = target.http.post(VALIDATE, json=target.body(train_data_path=str(path)))
        assert reply.status_code == 200, reply.text


@pytest.fixture
def odd_paths(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    (tmp_path / "mem.jsonl").symlink_to("/proc/self/mem")
    (tmp_path / "shadow.jsonl").symlink_to("/etc/shadow")
    return {
        "folder": str(folder),
        "pipe": str(tmp_path / "pipe.jsonl"),
        "endless device": str(tmp_path / "zero.jsonl"),
        "loop of links": str(tmp_path / "loop.jsonl"),
        "dangling link": str(tmp_path / "gone.jsonl"),
        "memory": str(tmp_path / "mem.jsonl"),
        "secret file": str(tmp_path / "shadow.jsonl"),
        "missing": str(tmp_path / "no.jsonl"),
        "below a file": str(tmp_path / "folder.jsonl" / "x" / "y.jsonl"),
        "other user": "~nobody-of-that-name/a.jsonl",
    }


def test_odd_paths_are_refused(unharmed: Target, odd_paths: dict[str, str]) -> None:
    for name, path in odd_paths.items():
        problem = refused(unharmed, path)
        assert "root:" not in str(problem), name


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    me = os.geteuid()
    if me == 0:  # root reads everything
        os.seteuid(65534)
    try:
        report = check_dataset(path, "sft")
    finally:
        os.seteuid(me)
    assert [finding.code for finding in report.errors] == ["dataset_not_readable"]


def test_evaluation_data_is_looked_at_too(unharmed: Target, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt":5}\n')
    reply = unharmed.http.post("/api/v1/jobs/", json=unharmed.body(eval_data_path=str(path)))
    problem = check_refusal(reply)
    assert {error["field"] for error in problem["errors"]} == {"eval_data_path"}
