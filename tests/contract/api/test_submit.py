"""Submitting: idempotency, preflight, paths, validation, secrets."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from sqlmodel import select

from services.api.db.tables import JobRow, JobSecretRow, RequestRow
from services.api.jobs.placement import KnownHost, Place, place_of
from shared.jobs.lifecycle import Change
from shared.jobs.status import JobStatus
from shared.specs import parse_job_spec
from tests.integration.api.conftest import MakeYard
from tests.integration.api.yard import ApiYard, inventory

pytestmark = [pytest.mark.contract]


async def test_fifty_posts_with_one_key_make_one_job(both: ApiYard) -> None:
    headers = {"Idempotency-Key": "k-1"}
    body = both.body(secrets={"HF_TOKEN": "hf_abcdefghijk"})
    replies = await asyncio.gather(
        *(both.http.post("/api/v1/jobs/", json=body, headers=headers) for _ in range(50))
    )
    assert {r.status_code for r in replies} == {201}
    assert len({r.json()["uuid"] for r in replies}) == 1
    assert sum("idempotency-replayed" not in r.headers for r in replies) == 1
    assert len(both.rows(select(JobRow))) == len(both.rows(select(RequestRow))) == 1
    assert len(both.rows(select(JobSecretRow))) == 1
    same = json.dumps(dict(reversed(list(body.items()))), indent=3)
    reply = await both.http.post(
        "/api/v1/jobs/", content=same, headers=headers | {"Content-Type": "application/json"}
    )
    assert reply.json()["uuid"] == replies[0].json()["uuid"]
    reply = await both.http.post("/api/v1/jobs/", json=body | {"name": "x"}, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (409, "idempotency_mismatch")


async def test_a_key_whose_job_was_deleted_says_so(both: ApiYard) -> None:
    headers = {"Idempotency-Key": "k-2"}
    uuid = (await both.submit(headers))["uuid"]
    await both.say(Change.CANCELLED, uuid, status=JobStatus.CANCELLED)
    assert (await both.http.delete(f"/api/v1/jobs/{uuid}")).status_code == 204
    for _ in range(2):
        reply = await both.http.post("/api/v1/jobs/", json=both.body(), headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (409, "idempotency_job_deleted")
        assert uuid in reply.json()["detail"]
        await both.say(Change.DELETED, uuid, deleted=True, req_n=2)
    assert len(both.rows(select(JobRow))) == 1
    assert (await both.submit({"Idempotency-Key": "k-3"}))["uuid"] != uuid


async def test_a_key_is_answered_when_the_data_has_gone(yard: ApiYard) -> None:
    first = await yard.submit({"Idempotency-Key": "k"})
    yard.data.unlink()
    assert (await yard.submit({"Idempotency-Key": "k"}))["uuid"] == first["uuid"]


async def test_a_refused_body_leaves_nothing(both: ApiYard) -> None:
    reply = await both.http.post(
        "/api/v1/jobs/",
        json=both.body(depends_on=["00000000-0000-7000-8000-000000000009"]),
        headers={"Idempotency-Key": "k"},
    )
    assert reply.status_code == 422
    assert both.rows(select(JobRow)) == both.rows(select(RequestRow)) == []
    await both.submit({"Idempotency-Key": "k"})


async def test_wrong_data_is_told_by_file_line_and_column(yard: ApiYard) -> None:
    cases: list[tuple[str, str, list[str]]] = [
        ("gone.jsonl", "", ["gone.jsonl"]),
        ("bad.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": \n', ["bad.jsonl", "2"]),
        ("cols.jsonl", '{"question": "a", "answer": "b"}\n', ["cols.jsonl", "prompt"]),
        ("null.jsonl", '{"prompt": "a", "response": null}\n', ["null.jsonl", "1", "response"]),
        ("empty.jsonl", "\n\n", ["empty.jsonl"]),
        ("data.txt", "hello", ["data.txt", ".jsonl"]),
        ("h.csv", "prompt,answer\na,b\n", ["h.csv", "response"]),
    ]
    for name, content, wanted in cases:
        path = yard.home / name
        if content:
            path.write_text(content)
        reply = await yard.http.post("/api/v1/jobs/", json=yard.body(train_data_path=str(path)))
        assert reply.status_code == 422, name
        error = reply.json()["errors"][0]
        assert error["field"] == "train_data_path"
        for part in wanted:
            assert part in error["message"], (name, error)
    reply = await yard.http.post("/api/v1/jobs/", json=yard.body(eval_data_path="nope.jsonl"))
    assert reply.json()["errors"][0]["field"] == "eval_data_path"


async def test_a_mended_file_is_looked_at_again(yard: ApiYard) -> None:
    path = yard.home / "d.jsonl"
    path.write_text('{"question": "a"}\n')
    body = yard.body(train_data_path=str(path))
    assert (await yard.http.post("/api/v1/jobs:validate", json=body)).status_code == 422
    path.write_text('{"prompt": "a", "response": "b"}\n' * 3)
    reply = await yard.http.post("/api/v1/jobs:validate", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["estimates"]["rows"] == 3
    assert reply.json()["estimates"]["total_steps"] == 2


async def test_a_folder_that_is_no_model_is_refused(yard: ApiYard) -> None:
    (yard.home / "model").mkdir()
    body = yard.body(model_path=str(yard.home / "model"))
    reply = await yard.http.post("/api/v1/jobs/", json=body)
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "model_path")
    assert "config.json" in reply.json()["detail"]


async def test_paths_of_other_hosts_are_left_to_them(yard: ApiYard) -> None:
    await yard.say_host("h1", inventory=inventory(hostname="box1"))
    await yard.submit(train_data_path="/data/only/there.jsonl", host="box1")
    await yard.say_host("h2", label="here", inventory=inventory(hostname=socket.gethostname()))
    body = yard.body(train_data_path="/data/only/there.jsonl")
    reply = await yard.http.post("/api/v1/jobs:validate", json=body)
    assert reply.status_code == 200
    assert "train_data_path" in [w["field"] for w in reply.json()["warnings"]]
    reply = await yard.http.post("/api/v1/jobs/", json=body | {"host": "here"})
    assert reply.status_code == 422


def test_where_a_job_will_read_its_paths() -> None:
    base = {"algorithm": "sft", "model_path": "o/m", "train_data_path": "d.jsonl"}
    plain = parse_job_spec(base)
    pinned = parse_job_spec(base | {"host": "box1"})
    ssh = parse_job_spec(base | {"run_mode": "ssh", "ssh_host": "gpu", "ssh_username": "u"})
    here = KnownHost("h1", "me", "me", "cpu", 0, 1)
    there = KnownHost("h2", "box1", "box1", "cuda", 1, 1)
    assert place_of(ssh, [here], "me", embedded=True) is Place.ELSEWHERE
    assert place_of(plain, [], "me", embedded=True) is Place.HERE
    assert place_of(plain, [], "me", embedded=False) is Place.PERHAPS
    assert place_of(plain, [here], "me", embedded=False) is Place.HERE
    assert place_of(plain, [here, there], "me", embedded=True) is Place.PERHAPS
    assert place_of(plain, [there], "me", embedded=True) is Place.ELSEWHERE
    assert place_of(pinned, [here, there], "me", embedded=True) is Place.ELSEWHERE
    assert place_of(pinned, [here], "me", embedded=True) is Place.PERHAPS


async def test_roots_hold_once_others_can_reach_the_api(
    make_yard: MakeYard, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    yard = make_yard(data_roots=str(allowed))
    good = allowed / "d.jsonl"
    good.write_text(yard.data.read_text())
    (allowed / "link.jsonl").symlink_to(yard.data)
    await yard.submit(train_data_path=str(good))
    for path in (yard.data, allowed / "link.jsonl", f"{allowed}/../home/data.jsonl", "/etc/passwd"):
        reply = await yard.http.post("/api/v1/jobs/", json=yard.body(train_data_path=str(path)))
        assert reply.status_code == 422, path
        assert reply.json()["errors"][0]["code"] == "path_forbidden"
        assert "TRAINYARD_DATA_ROOTS" in reply.json()["detail"]


async def test_validate_resolves_and_warns(yard: ApiYard) -> None:
    body = yard.body(lora_enabled=True, lora_rank=64, secrets={"HF_TOKEN": "hf_abcdefghij"})
    reply = await yard.http.post(
        "/api/v1/jobs:validate", json=body, headers={"Accept-Language": "zh"}
    )
    assert reply.status_code == 200
    found = reply.json()
    assert found["valid"] is True
    assert found["config"]["lora_rank"] == 64
    assert found["secrets"] == ["HF_TOKEN"]
    assert "hf_abc" not in reply.text
    assert "大任务" in next(w["message"] for w in found["warnings"] if w["field"] == "lora_rank")
    assert (await yard.http.get("/api/v1/jobs/")).json()["items"] == []


async def test_cursors_cannot_be_made_or_moved(yard: ApiYard) -> None:
    for _ in range(3):
        await yard.submit()
    first = (await yard.http.get("/api/v1/jobs/?limit=1")).json()["next"]
    good = await yard.http.get("/api/v1/jobs/", params={"limit": 1, "after": first})
    assert good.status_code == 200
    flipped = first[:-1] + ("A" if first[-1] != "A" else "B")
    wrong = [
        {"after": flipped},
        {"after": first[5:]},
        {"after": first, "sort": "name"},
        {"after": first, "q": "x"},
        {"after": "A" * 3000},
        {"after": "é" * 10},
    ]
    for params in wrong:
        reply = await yard.http.get("/api/v1/jobs/", params=params)
        assert reply.status_code == 422, params
        assert reply.json()["errors"][0]["field"] == "after"
