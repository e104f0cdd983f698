"""The job routes on SQLite and PostgreSQL: shapes, actions, lists."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlmodel import select

from services.api.db.tables import RequestRow
from shared.events.run import RunCheckpoint, RunStarted
from shared.jobs.lifecycle import Bilingual, Change
from shared.jobs.reasons import Reason
from shared.jobs.status import JobStatus
from tests.integration.api.yard import MISSING, ApiYard

pytestmark = [pytest.mark.contract]
PUBLIC = {
    "uuid", "name", "description", "status", "reason", "message", "hint", "waiting_for", "algorithm", "config", "attempt",
    "host", "gpus", "depends_on", "pipeline", "tags", "progress", "latest_metrics", "final_metrics", "checkpoint_dir",
    "created_at", "started_at", "finished_at",
}  # fmt: skip


async def test_the_guides_body_becomes_a_pending_job(both: ApiYard) -> None:
    reply = await both.http.post("/api/v1/jobs/", json=both.body())
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/api/v1/jobs/{job['uuid']}"
    assert set(job) >= PUBLIC
    assert job["status"] == "PENDING"
    assert job["waiting_for"] == "Accepted; the scheduler will place it."
    assert job["config"]["batch_size"] == 2
    assert job["config"]["save_steps"] == 20
    assert job["created_at"].endswith("Z")
    assert await both.job(job["uuid"]) == job


async def test_a_job_shows_what_the_scheduler_decided(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say_host()
    waiting = Bilingual(en="needs 2 GPUs, largest free host has 1", zh="需要 2 块 GPU")
    await both.say(Change.QUEUED, uuid, reason=Reason.NOT_ENOUGH_GPUS, waiting_for=waiting)
    assert (await both.job(uuid))["waiting_for"] == waiting.en
    reply = await both.http.get(
        f"/api/v1/jobs/{uuid}", headers={"Accept-Language": "zh-CN,en;q=0.5"}
    )
    assert reply.json()["waiting_for"] == waiting.zh
    await both.say(
        Change.ASSIGNED,
        uuid,
        host="h1",
        attempt=1,
        gpus=(0,),
        reason=Reason.ASSIGNED,
        waiting_for=None,
    )
    await both.say(Change.RUNNING, uuid, status=JobStatus.RUNNING, reason=None)
    job = await both.job(uuid)
    assert (job["status"], job["host"], job["gpus"], job["attempt"]) == ("RUNNING", "box1", [0], 1)
    await both.say(
        Change.FAILED,
        uuid,
        status=JobStatus.FAILED,
        reason=Reason.CUDA_OOM,
        final_metrics={"loss": 2.0},
        message=Bilingual(en="tried to allocate 2 GiB", zh="尝试分配 2 GiB"),
    )
    job = await both.job(uuid)
    assert job["reason"] == "cuda_oom"
    assert job["message"] == "tried to allocate 2 GiB"
    assert "batch_size" in job["hint"]
    assert job["final_metrics"] == {"loss": 2.0}
    events = (await both.http.get(f"/api/v1/jobs/{uuid}/events")).json()
    assert [e["type"] for e in events] == [
        "job.queued",
        "job.assigned",
        "job.running",
        "job.failed",
    ]
    assert [e["n"] for e in events] == [1, 2, 3, 4]


async def test_actions_follow_the_status(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    for verb in ("resume", "retry", "declare-lost"):
        reply = await both.act(uuid, verb)
        assert (reply.status_code, reply.json()["code"]) == (409, "invalid_transition"), verb
    assert (await both.http.delete(f"/api/v1/jobs/{uuid}")).status_code == 409
    reply = await both.act(uuid, "pause")
    assert reply.status_code == 202
    assert reply.json()["stop_requested"] == "pause"
    assert reply.json()["reason"] == "stopping"
    await both.say(Change.PAUSED, uuid, status=JobStatus.PAUSED, reason=Reason.USER, req_n=2)
    assert (await both.act(uuid, "pause")).status_code == 409
    assert (await both.act(uuid, "resume")).status_code == 202
    assert (await both.act(uuid, "cancel")).status_code == 202
    assert (await both.act(uuid, "cancel")).status_code == 202
    await both.say(Change.CANCELLED, uuid, status=JobStatus.CANCELLED, req_n=4)
    assert (await both.act(uuid, "cancel")).json()["code"] == "invalid_transition"
    retried = await both.act(uuid, "retry")
    assert (retried.status_code, retried.json()["status"]) == (202, "PENDING")
    assert retried.json()["finished_at"] is None
    reply = await both.http.delete(f"/api/v1/jobs/{uuid}")
    assert reply.json()["code"] == "invalid_transition"
    assert (await both.act(uuid, "cancel")).status_code == 202


async def test_declare_lost_is_for_silent_hosts(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    running = {"status": JobStatus.RUNNING, "host": "h1", "attempt": 1}
    await both.say(Change.RUNNING, uuid, **running)
    assert (await both.act(uuid, "declare-lost")).status_code == 409
    await both.say(Change.DISCONNECTED, uuid, **running, reason=Reason.DISCONNECTED)
    assert (await both.act(uuid, "declare-lost")).status_code == 202


async def test_twenty_cancels_at_once_write_one_request(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    replies = await asyncio.gather(*(both.act(uuid, "cancel") for _ in range(20)))
    assert {r.status_code for r in replies} == {202}

    rows = both.rows(select(RequestRow))
    assert [(r.req_n, r.type) for r in rows] == [
        (1, "request.job.submit.v1"),
        (2, "request.job.cancel.v1"),
    ]


async def test_delete_leaves_a_tombstone(both: ApiYard) -> None:
    uuid = (await both.submit(secrets={"HF_TOKEN": "hf_abcdefghijkl"}))["uuid"]
    await both.say(Change.CANCELLED, uuid, status=JobStatus.CANCELLED)
    assert (await both.http.delete(f"/api/v1/jobs/{uuid}")).status_code == 204
    telemetry = ("/metrics", "/logs", "/logs/download", "/samples", "/system")
    for path in ("", "/events", "/checkpoints", "/secrets", *telemetry):
        reply = await both.http.get(f"/api/v1/jobs/{uuid}{path}")
        assert (reply.status_code, reply.json()["code"]) == (404, "job_deleted"), path
    assert (await both.http.get("/api/v1/jobs/")).json()["items"] == []
    await both.say(Change.DELETED, uuid, deleted=True, req_n=2)
    assert (await both.http.get(f"/api/v1/jobs/{uuid}")).json()["code"] == "job_deleted"
    assert (await both.http.get(f"/api/v1/jobs/{MISSING}")).json()["code"] == "job_not_found"


async def test_a_job_that_others_need_is_not_deleted(both: ApiYard) -> None:
    first = (await both.submit())["uuid"]
    second = await both.submit(depends_on=[first], model_path=f"job:{first}@best")
    assert second["depends_on"] == [first]
    await both.say(Change.COMPLETED, first, status=JobStatus.COMPLETED)
    reply = await both.http.delete(f"/api/v1/jobs/{first}")
    assert reply.json()["code"] == "has_dependents"
    assert second["uuid"] in reply.json()["detail"]
    await both.say(Change.CANCELLED, second["uuid"], status=JobStatus.CANCELLED)
    assert (await both.http.delete(f"/api/v1/jobs/{first}")).status_code == 204


async def test_dependencies_must_be_able_to_complete(both: ApiYard) -> None:
    reply = await both.http.post("/api/v1/jobs/", json=both.body(depends_on=[MISSING]))
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["field"] == "depends_on"
    reply = await both.http.post("/api/v1/jobs/", json=both.body(model_path=f"job:{MISSING}"))
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "model_path")
    first = (await both.submit())["uuid"]
    await both.say(Change.FAILED, first, status=JobStatus.FAILED, reason=Reason.KILLED)
    reply = await both.http.post("/api/v1/jobs/", json=both.body(depends_on=[first]))
    assert (reply.status_code, reply.json()["code"]) == (409, "dependency_failed")
    assert (await both.act(first, "retry")).status_code == 202
    await both.submit(depends_on=[first])


async def test_a_step_must_be_there(both: ApiYard) -> None:
    first = (await both.submit())["uuid"]
    await both.say(Change.ASSIGNED, first, host="h1", attempt=1)
    await both.tell(first, RunStarted(seq=1, t=1.0, pid=1, boot_id="b", warm=True))
    await both.tell(first, RunCheckpoint(seq=2, t=2.0, step=20, path="/x/checkpoint-20"))
    await both.say(Change.COMPLETED, first, status=JobStatus.COMPLETED)
    reply = await both.http.post("/api/v1/jobs/", json=both.body(model_path=f"job:{first}@40"))
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["allowed"] == [20]
    await both.submit(model_path=f"job:{first}@20")


async def test_patch_changes_what_may_change(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    change: dict[str, Any] = {"name": "better", "description": "why", "tags": ["a"], "priority": 80}
    reply = await both.http.patch(f"/api/v1/jobs/{uuid}", json=change)
    assert reply.status_code == 200
    assert {k: reply.json()[k] for k in change} == change
    await both.say(Change.RUNNING, uuid, status=JobStatus.RUNNING, priority=80)
    reply = await both.http.patch(f"/api/v1/jobs/{uuid}", json={"priority": 1})
    assert (reply.status_code, reply.json()["code"]) == (409, "not_waiting")
    reply = await both.http.patch(f"/api/v1/jobs/{uuid}", json={"algorithm": "dpo"})
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (422, "unknown_field")
    reply = await both.http.patch(f"/api/v1/jobs/{uuid}", json={"name": "a\nb"})
    assert reply.status_code == 422


async def test_a_clone_can_be_submitted(both: ApiYard) -> None:
    uuid = (await both.submit(tags=["x"], secrets={"HF_TOKEN": "hf_secretsecret"}))["uuid"]
    reply = await both.http.post(f"/api/v1/jobs/{uuid}/clone")
    assert reply.status_code == 200
    body = reply.json()
    assert "hf_secret" not in reply.text
    assert (await both.http.get("/api/v1/jobs/")).json()["counts"]["PENDING"] == 1
    reply = await both.http.post("/api/v1/jobs/", json=body)
    assert reply.status_code == 201, reply.text
    assert reply.json()["name"] == "first (copy)"
    assert reply.json()["tags"] == ["x"]


async def test_pages_hold_every_job_once(both: ApiYard) -> None:
    made = [(await both.submit(name=f"job {i % 3}", priority=i % 2))["uuid"] for i in range(11)]
    for sort in ("-created_at", "created_at", "name", "-priority", "started_at", "-finished_at"):
        seen: list[str] = []
        after = None
        while True:
            query = {"sort": sort, "limit": "3"} | ({"after": after} if after else {})
            reply = await both.http.get("/api/v1/jobs/", params=query)
            assert reply.status_code == 200, reply.text
            seen += [job["uuid"] for job in reply.json()["items"]]
            after = reply.json()["next"]
            if after is None:
                break
        assert sorted(seen) == sorted(made), sort
        assert len(seen) == 11
    newest = (await both.http.get("/api/v1/jobs/", params={"limit": 1})).json()
    assert newest["items"][0]["uuid"] == made[-1]
    assert newest["counts"] == {
        "PENDING": 11, "RUNNING": 0, "PAUSED": 0, "COMPLETED": 0, "FAILED": 0, "CANCELLED": 0,
    }  # fmt: skip


FILTERS: list[tuple[dict[str, str], set[str]]] = [
        ({"status": "PENDING"}, {"alpha", "beta", "gamma"}),
        ({"status": "RUNNING,FAILED"}, set()),
        ({"q": "ALP"}, {"alpha"}),
        ({"q": "100%"}, set()),
        ({"q": "night"}, {"beta"}),
        ({"filter": "config.learning_rate>1e-5"}, {"beta", "gamma"}),
        ({"filter": "config.learning_rate>1e-5 AND priority>=60"}, {"gamma"}),
        ({"filter": "name=alpha OR name=beta AND priority=50"}, {"alpha", "beta"}),
        ({"filter": 'NOT (name="alpha" OR tags:night)'}, {"gamma"}),
        ({"filter": "-name=a*"}, {"beta", "gamma"}),
        ({"filter": "tags:夜间"}, {"gamma"}),
        ({"filter": "tags!=night"}, {"alpha", "gamma"}),
        ({"filter": "config.lora_enabled=true"}, {"gamma"}),
        ({"filter": "config.max_steps=null"}, {"alpha", "beta"}),
        ({"filter": "config.max_steps<=5"}, {"gamma"}),
        ({"filter": 'config.optim="sgd"'}, {"beta"}),
        ({"filter": "status=pending AND algorithm=sft AND attempt=0"}, {"alpha", "beta", "gamma"}),
        ({"filter": "created_at>2026-01-01T00:00:00Z AND created_at<2999-01-01"}, {"alpha", "beta", "gamma"}),
        ({"filter": "host=box1"}, set()),
        ({"filter": "host!=box1"}, {"alpha", "beta", "gamma"}),
        ({"filter": """name='x" OR 1=1 --'"""}, set()),
    ]  # fmt: skip


async def test_filters(both: ApiYard) -> None:
    await both.submit(name="alpha")
    await both.submit(name="beta", learning_rate=1e-4, tags=["night"], optim="sgd")
    await both.submit(
        name="gamma", learning_rate=1e-3, priority=70, tags=["夜间"], lora_enabled=True, max_steps=5
    )
    for query, names in FILTERS:
        reply = await both.http.get("/api/v1/jobs/", params=query)
        assert reply.status_code == 200, reply.text
        assert {job["name"] for job in reply.json()["items"]} == names, query
        if "status" not in query:
            assert reply.json()["counts"]["PENDING"] == len(names), query


async def test_checkpoints_follow_the_facts(both: ApiYard) -> None:
    uuid = (await both.submit())["uuid"]
    await both.say(Change.ASSIGNED, uuid, host="h1", attempt=1)
    facts = [
        RunCheckpoint(seq=1, t=1.0, step=0, path="/c/checkpoint-0", size_bytes=5 * 2**30),
        RunCheckpoint(seq=2, t=2.0, step=20, path="/c/checkpoint-20", best=True, metrics={"eval_loss": 1.5}),
        RunCheckpoint(seq=3, t=3.0, step=40, path="/c/checkpoint-40", best=True),
        RunCheckpoint(seq=4, t=4.0, step=20, path="/c/checkpoint-20", deleted=True),
    ]  # fmt: skip
    for fact in [*facts, *facts]:
        await both.tell(uuid, fact)
    await both.tell(uuid, RunCheckpoint(seq=6, t=4.0, step=80, path="/c/checkpoint-80"))
    await both.tell(uuid, RunCheckpoint(seq=5, t=4.0, step=60, path="/x"), host="h2")
    rows = (await both.http.get(f"/api/v1/jobs/{uuid}/checkpoints")).json()
    assert [(r["step"], r["best"], r["last"]) for r in rows] == [
        (0, False, False),
        (40, True, True),
    ]
    assert rows[0]["size_bytes"] == 5 * 2**30
    assert {(r["host"], r["host_id"]) for r in rows} == {("h1", "h1")}
    await both.say_host()
    rows = (await both.http.get(f"/api/v1/jobs/{uuid}/checkpoints")).json()
    assert {(r["host"], r["host_id"]) for r in rows} == {("box1", "h1")}
    assert (await both.job(uuid))["host"] == "box1"


async def test_jobs_are_found_by_their_reason(both: ApiYard) -> None:
    lost, plain = [(await both.submit(name=name))["uuid"] for name in ("lost", "plain")]
    await both.say(
        Change.DISCONNECTED, lost, host="h1", attempt=1, status=JobStatus.RUNNING, reason=Reason.DISCONNECTED
    )  # fmt: skip
    await both.say(Change.RUNNING, plain, host="h1", attempt=1, status=JobStatus.RUNNING)
    for condition, names in [
        ("reason=disconnected", {"lost"}),
        ("reason!=disconnected", {"plain"}),
        ("reason=null", {"plain"}),
        ("reason!=null", {"lost"}),
        ("NOT reason=cuda_oom AND status=RUNNING", {"lost", "plain"}),
    ]:
        reply = await both.http.get("/api/v1/jobs/", params={"filter": condition})
        assert reply.status_code == 200, reply.text
        assert {job["name"] for job in reply.json()["items"]} == names, condition


async def test_what_an_address_does_not_take_is_refused(yard: ApiYard) -> None:
    uuid = (await yard.submit())["uuid"]
    reply = await yard.http.get("/api/v1/jobs/?staus=RUNNING")
    assert reply.status_code == 422
    assert "Did you mean status?" in reply.json()["detail"]
    reply = await yard.http.get("/api/v1/jobs/?limit=1&limit=2")
    assert reply.json()["errors"][0]["code"] == "duplicate"
    for body in ({"force": True}, [1], "now"):
        reply = await yard.http.post(f"/api/v1/jobs/{uuid}/cancel", json=body)
        assert (reply.status_code, reply.json()["errors"][0]["code"]) == (422, "unknown_field")
    assert (await yard.job(uuid))["stop_requested"] is None
    assert (await yard.http.post(f"/api/v1/jobs/{uuid}/cancel", json={})).status_code == 202
