"""Hostile messages from a host that was let in: set aside or bounded, nothing jams, and every page can still be shown."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from services.scheduler.core.state import Limits
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.bus.port import BusError
from shared.events import Envelope
from shared.events.job import JOB_EVENTS
from shared.events.run import RunCheckpoint, SampleBatch
from shared.ids import new_message_id
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.status import JobStatus
from tests.conftest import START_SECONDS, BusFor, RunningBroker, eventually
from tests.hostile.target import Target
from tests.integration.scheduler.rig import Feed, HostActor, Scheduler, Users
from tests.unit.telemetry.messages import log, met, metric

pytestmark = [pytest.mark.e2e]
GROWTH_MIB = 200
RUN: dict[str, Any] = {"type": "run.started.v1", "seq": 1, "t": 1e9, "pid": 1, "boot_id": "b", "warm": True}  # fmt: skip
POINT: dict[str, Any] = {"type": "run.checkpoint.v1", "seq": 1, "t": 1e9, "step": 3, "path": "/c/checkpoint-3"}  # fmt: skip
END: dict[str, Any] = {"type": "run.exited.v1", "seq": 1, "t": 1e9, "outcome": "completed"}
MET: dict[str, Any] = {"type": "run.metrics.v1", "first_seq": 1, "items": [metric(1, loss=1.0)]}
LOG: dict[str, Any] = {"type": "run.logs.v1", "first_seq": 1, "items": [{"t": 1e9, "level": "INFO", "message": "x"}]}  # fmt: skip
SMP: dict[str, Any] = {"type": "run.samples.v1", "first_seq": 1, "items": [{"t": 1e9, "step": 1, "prompt": "p"}]}  # fmt: skip
SYS: dict[str, Any] = {"type": "run.system.v1", "first_seq": 1, "items": [{"t": 1e9, "gpus": []}]}


def line(**fields: Any) -> dict[str, Any]:
    return MET | {"items": [metric(1, loss=1.0) | fields]}


def logged(**fields: Any) -> dict[str, Any]:
    return LOG | {"items": [{"t": 1e9, "level": "INFO", "message": "x"} | fields]}


NAN, INF = float("nan"), float("inf")
MESSAGES: list[tuple[str, str, Any]] = [
    # name, prefix of the subject, payload (bytes as they are)
    ("nothing", "run", b""),
    ("garbage", "run", b"\xff\xfe\x00"),
    ("null", "run", b"null"),
    ("a list", "run", b"[]"),
    ("deep", "run", b"[" * 100_000),
    ("a deep unknown", "run", b'{"type":"run.x.v9","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("a version to come", "run", {"type": "run.started.v99", "seq": 1}),
    ("no type", "run", {"seq": 1}),
    ("a type that is a number", "run", {"type": 5}),
    ("the scheduler's word", "run", {"type": "job.completed.v1", "at": "2026-01-01T00:00:00Z"}),
    ("metrics as a fact", "run", MET),
    ("a fact as metrics", "met", RUN),
    ("seq 0", "run", RUN | {"seq": 0}),
    ("seq -1", "run", RUN | {"seq": -1}),
    ("seq 10**18", "run", RUN | {"seq": 10**18}),
    ("seq 2**70", "run", RUN | {"seq": 2**70}),
    ("seq text", "run", RUN | {"seq": "1; drop table job"}),
    ("t nan", "run", RUN | {"t": NAN}),
    ("t infinite", "run", RUN | {"t": INF}),
    ("t 1e300", "run", RUN | {"t": 1e300}),
    ("t -1e300", "run", RUN | {"t": -1e300}),
    ("pid 2**70", "run", RUN | {"pid": 2**70}),
    ("step -1", "run", POINT | {"step": -1}),
    ("step 10**18", "run", POINT | {"step": 10**18}),
    ("step 2**70", "run", POINT | {"step": 2**70}),
    ("a path of 100 KB", "run", POINT | {"path": "/" + "a" * 100_000}),
    ("a path with NUL", "run", POINT | {"path": "/a\0b"}),
    ("a path of half a character", "run", b'{"type":"run.checkpoint.v1","seq":1,"t":1,"step":1,"path":"\\ud800"}'),
    ("a path elsewhere", "run", POINT | {"path": "/etc/checkpoint-3"}),
    ("size -1", "run", POINT | {"size_bytes": -1}),
    ("size 2**70", "run", POINT | {"size_bytes": 2**70}),
    ("metrics nan", "run", POINT | {"metrics": {"loss": NAN, "x": INF}}),
    ("metrics text", "run", POINT | {"metrics": {"loss": "low"}}),
    ("10,000 metrics", "run", POINT | {"metrics": {f"m{i}": 1.0 for i in range(10_000)}}),
    ("an outcome", "run", END | {"outcome": "won"}),
    ("a reason", "run", END | {"reason": "because"}),
    ("last_seq 10**18", "run", END | {"last_seq": {"met": 10**18, "log": -5}}),
    ("last_seq of strangers", "run", END | {"last_seq": {"x" * 1000: 2**70}}),
    ("final metrics nan", "run", END | {"final_metrics": {"loss": NAN}}),
    ("an exit code 2**70", "run", END | {"exit_code": 2**70, "signal": -(2**70)}),
    ("words of 100 KB", "run", END | {"outcome": "failed", "message_en": "x" * 100_000, "message_zh": "\x1b[31m\u202e"}),
    ("another job in the payload", "run", RUN | {"job": "00000000", "host": "h2", "attempt": 9}),
    ("first_seq 0", "met", MET | {"first_seq": 0}),
    ("first_seq -10**18", "met", MET | {"first_seq": -(10**18)}),
    ("first_seq 2**70", "met", MET | {"first_seq": 2**70}),
    ("items text", "met", MET | {"items": "x"}),
    ("items of numbers", "met", MET | {"items": [1, 2]}),
    ("20,000 empty items", "met", MET | {"items": [{}] * 20_000}),
    ("step nan in metrics", "met", line(step=NAN)),
    ("step text in metrics", "met", line(step="1")),
    ("step 1e300 in metrics", "met", line(step=1e300)),
    ("step of lists", "met", line(step=[1])),
    ("time nan in metrics", "met", line(t=NAN)),
    ("time text in metrics", "met", line(t="now")),
    ("time 1e300 in metrics", "met", line(t=1e300)),
    ("epoch infinite", "met", line(epoch=INF)),
    ("values nan and text", "met", line(metrics={"a": NAN, "b": "x", "c": None, "d": [1], "e": True})),
    ("values 10**400", "met", b'{"type":"run.metrics.v1","first_seq":1,"items":[{"type":"metric","t":1,"step":1,"metrics":{"a":' + b"9" * 400 + b"}}]}"),
    ("5,000 names", "met", line(metrics={f"m{i}": 1.0 for i in range(5000)})),
    ("a name of 10 KB", "met", line(metrics={"n" * 10_000: 1.0})),
    ("a name with NUL", "met", line(metrics={"a\0b": 1.0, "": 2.0, "__proto__": 3.0})),
    ("marks that lie", "met", line(metrics={"a": None}, nonfinite={"a": "huge", "b": 5})),
    ("progress of words", "met", line(type="progress", step="x", total_steps=[], eta_seconds=NAN)),
    ("progress 2**70", "met", line(type="progress", step=2**70, total_steps=-1, eta_seconds=1e300)),
    ("a phase of objects", "met", line(type="phase", name={"a": 1})),
    ("a kind of its own", "met", line(type="bomb")),
    ("system of words", "met", SYS | {"items": [{"t": "x", "gpus": "y", "cpu_percent": [], "rss_mib": NAN}]}),
    ("system of 5,000 GPUs", "met", SYS | {"items": [{"t": 1, "gpus": [{"index": i} for i in range(5000)]}]}),
    ("a GPU at -1", "met", SYS | {"items": [{"t": 1, "gpus": [{"index": -1, "utilization": INF}, 5, None]}]}),
    ("a level", "log", logged(level="FATAL")),
    ("a level of lists", "log", logged(level=[])),
    ("a message of 200 KB", "log", logged(message="x" * 200_000)),
    ("a message of escapes", "log", logged(message="\x1b]8;;http://evil\x07</script>\0\u202e")),
    ("a message of numbers", "log", logged(message={"a": 1})),
    ("a message of half a character", "log", b'{"type":"run.logs.v1","first_seq":1,"items":[{"t":1,"level":"INFO","message":"\\ud800"}]}'),
    ("a time of words in the log", "log", logged(t="x")),
    ("a time of 1e300 in the log", "log", logged(t=1e300)),
    ("a gap that lies", "log", logged(gap={"lines": -1, "bytes": "x"})),
    ("a gap of words", "log", logged(gap="x")),
    ("a sample of objects", "smp", SMP | {"items": [{"prompt": {"a": [1]}, "reward": "high", "step": "x"}]}),
    ("a sample of nan", "smp", SMP | {"items": [{"reward": NAN, "step": NAN, "components": {"a": INF}}]}),
    ("a sample of 200 KB", "smp", SMP | {"items": [{"t": 1, "step": 1, "prompt": "x" * 200_000}]}),
]  # fmt: skip


async def connected(target: Target, role: str, host: str | None = None) -> Bus:
    return await Bus.connect(bus_config(target.broker.settings, role, host), timeout=START_SECONDS)  # type: ignore[arg-type]


def dead_letters(target: Target) -> int:
    path = target.home / "api" / "telemetry.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM dead_letter").fetchone()[0])


def shows_all(target: Target, job: str) -> bool:
    """Tell whether a job has a point, a line, a sample and a checkpoint: each comes by a stream of its own."""
    parts = {}
    for part in ("metrics", "logs", "samples", "checkpoints"):
        reply = target.http.get(f"/api/v1/jobs/{job}/{part}")
        if reply.status_code != 200:
            return False
        parts[part] = reply.json()
    lists = [parts["logs"]["items"], parts["samples"]["items"], parts["checkpoints"]]
    return parts["metrics"]["series"].get("loss") == [0.25] and all(lists)


async def test_no_message_jams_the_api_or_breaks_a_page(target: Target) -> None:
    scheduler, agent = await connected(target, "scheduler"), await connected(target, "agent", "h1")
    before, now = target.api_mib(), datetime.now(UTC)

    async def assign(job: str) -> None:
        state = JobState(
            job=job, job_n=1, req_n=1, submitted_at=now, attempt=1, host="h1", status=JobStatus.RUNNING
        )  # fmt: skip
        event = JOB_EVENTS[Change.ASSIGNED](at=now, state=state)  # type: ignore[call-arg]
        envelope = Envelope(new_message_id(), "/trainyard/test", now)
        await scheduler.publish(f"job.{job}", event, envelope, msg_id=new_message_id())

    jobs: dict[str, str] = {}
    for name, prefix, payload in MESSAGES:
        jobs[name] = job = str(uuid.uuid4())
        await assign(job)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await agent.connection.send(f"{prefix}.h1.{job}.1", data)
    for attempt in ("0", "-1", "99999999999999999999", "x", "1e3", "%D9%A1"):
        await agent.connection.send(f"run.h1.{target.ended}.{attempt}", json.dumps(RUN).encode())
    for job in (target.waiting, "no-such-job", "x" * 300):
        await agent.connection.send(f"met.h1.{job}.1", json.dumps(MET).encode())
    last = str(uuid.uuid4())
    await assign(last)
    # the last word in each stream: what came before it there is dealt with once it is shown
    for prefix, event in (
        ("run", RunCheckpoint(seq=1, t=1e9, step=3, path="/c/checkpoint-3")),
        ("met", met(1, [metric(1, loss=0.25)])),
        ("log", log(1, ["good"])),
        ("smp", SampleBatch.model_validate(SMP)),
    ):
        envelope = Envelope(new_message_id(), "/trainyard/test", now)
        await agent.publish(f"{prefix}.h1.{last}.1", event, envelope, msg_id=new_message_id())

    await eventually(lambda: shows_all(target, last), 30)
    await eventually(lambda: target.http.get("/readyz").status_code == 200, 10)
    assert dead_letters(target) >= 20
    for name, job in jobs.items():
        for part in ("", "/events", "/metrics", "/logs", "/logs/download", "/samples", "/system", "/checkpoints"):  # fmt: skip
            reply = target.http.get(f"/api/v1/jobs/{job}{part}")
            assert reply.status_code == 200, (name, part, reply.text[:300])
            assert len(reply.content) < 2_000_000, (name, part)
            if reply.headers["content-type"].startswith("application/json"):
                json.loads(reply.content, parse_constant=lambda c, n=name: pytest.fail(f"{n}: {c}"))
    assert target.http.get("/api/v1/jobs/?limit=500").status_code == 200
    assert target.api_mib() - before < GROWTH_MIB
    for bus in (scheduler, agent):
        await bus.close()


async def test_a_host_cannot_speak_for_another_or_for_a_service(target: Target) -> None:
    agent = await connected(target, "agent", "h1")
    before = target.written()
    for subject in (
        f"run.h2.{target.ended}.1",
        f"met.h2.{target.waiting}.1",
        f"job.{target.waiting}",
        "host.h2",
        f"req.job.{target.waiting}",
        "hb.h2",
        "secret.h2",
        "$JS.API.STREAM.DELETE.JOBS",
        "$JS.API.STREAM.PURGE.METRICS",
        "$KV.ctl.h2.x",
    ):
        try:
            await agent.connection.request(subject, json.dumps(RUN).encode(), 1.0)
        except (BusError, TimeoutError):
            continue
        pytest.fail(f"{subject} was answered")
    assert target.written() == before
    await agent.close()


async def test_requests_of_a_host_that_are_garbage_get_no_answer_and_no_harm(
    target: Target,
) -> None:
    agent = await connected(target, "agent", "h1")
    for subject in ("secret.h1", "ack.h1"):
        for data in (b"", b"\xff", b"[]", b"[" * 100_000, b'{"job":5,"attempt":"x"}', json.dumps({"job": "x" * 100_000, "attempt": 2**70, "attempts": [{"job": "a", "attempt": 2**70}]}).encode()):  # fmt: skip
            try:
                reply = await agent.connection.request(subject, data, 0.7)
            except (BusError, TimeoutError):
                continue
            assert b"CANARY" not in reply.data
            assert not json.loads(reply.data).get("values"), reply.data[:200]
    assert target.http.get("/readyz").status_code == 200
    await agent.close()


@pytest.fixture
async def scheduler(
    streams: None, broker: RunningBroker, bus_for: BusFor
) -> AsyncIterator[Scheduler]:
    limits = Limits(lease_ttl=30, backoff_first=0.05)
    running = Scheduler(await bus_for("scheduler"), broker.settings, limits)
    yield await running.ready()
    await running.stop()


async def test_no_message_jams_the_scheduler(scheduler: Scheduler, bus_for: BusFor) -> None:
    api, agent = await bus_for("api"), await bus_for("agent", "box1")
    box, feed = HostActor(agent, "box1"), Feed(api)
    users = Users(api)
    job = await users.submit(1)
    await eventually(lambda: feed.status(1))
    for _, prefix, payload in MESSAGES:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if prefix == "run":
            for tail in (f"{job}.1", f"{job}.0", f"{uuid.uuid4()}.1", f"{job}.99999999999"):
                await agent.connection.send(f"run.box1.{tail}", data)
        await api.connection.send(f"req.job.{uuid.uuid4()}", data)
        await api.connection.send(f"req.job.{job}", data)
        await api.connection.send("req.host.box1", data)
    for kind in ("submit", "cancel", "priority", "retry", "delete", "secrets"):
        for more in ({}, {"job": "x"}, {"job": str(job), "req_n": 2**70}, {"job": str(job), "req_n": -1}, {"job": str(job), "req_n": 10**15, "at": "2026-01-01T00:00:00Z"}):  # fmt: skip
            body = {"type": f"request.job.{kind}.v1"} | more
            await api.connection.send(f"req.job.{job}", json.dumps(body).encode())
    del box
    second = await users.submit(2)
    await eventually(lambda: feed.status(2), 30)
    assert second
