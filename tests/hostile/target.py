"""A real broker and api process with one job that has ended and one that waits, and what hostile input must not change."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil

from shared.bus import Bus, ensure_streams
from shared.bus.credentials import bus_config
from shared.events import Envelope
from shared.events.base import EventBase
from shared.events.job import JOB_EVENTS, HostUpdated
from shared.events.run import RunCheckpoint, RunExited, RunStarted, SampleBatch, SystemBatch
from shared.ids import new_message_id
from shared.jobs.lifecycle import Change, JobState
from shared.jobs.resources import HostInventory
from shared.jobs.status import JobStatus
from tests.conftest import PATIENCE, START_SECONDS, TEST_STORE_MIB, RunningBroker, eventually
from tests.integration.api.test_process import start as start_api
from tests.integration.api.test_process import until_ready, url_of
from tests.integration.api.yard import ROWS
from tests.unit.telemetry.messages import log, met, metric

SECONDS_AT_MOST = 15.0 * PATIENCE
"""What hostile input makes of a service is minutes or for ever."""
CHINESE = re.compile("[\u4e00-\u9fff]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
QUIET = ("logs", "nats/store", "run")
"""Folders that change by themselves while nobody asks anything."""
CONTENT = ("job", "request", "job_secret", "join_code", "job_event", "checkpoint", "job_dependency")
"""Tables of which every value is compared, not only how many rows they have."""


@dataclass
class Target:
    """What is under attack."""

    home: Path
    broker: RunningBroker
    process: subprocess.Popen[bytes]
    http: httpx2.Client
    data: Path
    host: str = "h1"
    ended: str = ""
    waiting: str = ""
    fill: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    def body(self, **changes: Any) -> dict[str, Any]:
        return {
            "algorithm": "sft",
            "model_path": "org/model",
            "train_data_path": str(self.data),
        } | changes

    def path(self, template: str) -> str:
        """Fill `{uuid}` and the like with what exists."""
        return re.sub(r"\{(\w+)\}", lambda m: self.fill[m[1]], template)

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/openapi.json").json()
        return found

    def settle(self) -> None:
        """Wait until every request is published: that is noted with it a moment after the answer."""
        deadline = time.monotonic() + SECONDS_AT_MOST
        with closing(sqlite3.connect(f"file:{self.home / 'api/main.db'}?mode=ro", uri=True)) as db:
            while db.execute("SELECT count(*) FROM request WHERE epoch IS NULL").fetchone()[0]:
                assert time.monotonic() < deadline, "a request is not published"
                time.sleep(0.02)

    def written(self) -> dict[str, Any]:
        """Rows of every table, values of those that hold requests, and every file that is not a log."""
        found: dict[str, Any] = {"files": sorted(_files(self.home))}
        for path in (self.home / "api/main.db", self.home / "api/telemetry.db"):
            for table, state in _tables(path):
                found[f"{path.stem}.{table}"] = state
        return found

    def api_mib(self) -> float:
        """Resident memory of the api in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / (1 << 20)

    def stop(self) -> int:
        """End everything and return the api's exit status."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.broker.stop()


def _files(home: Path) -> Iterator[str]:
    for path in home.rglob("*"):
        name = path.relative_to(home).as_posix()
        if not name.startswith(QUIET) and path.is_file() and not name.endswith(("-wal", "-shm")):
            yield name


def _tables(path: Path) -> Iterator[tuple[str, Any]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            (count,) = connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            yield name, count
            if name in CONTENT:
                rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
                yield f"{name} content", hashlib.sha256(repr(rows).encode()).hexdigest()


def start(home: Path) -> Target:
    """Start broker and api on `home`, and let a scheduler and a host tell of two jobs."""
    home.mkdir(parents=True)
    broker = RunningBroker(home)
    asyncio.run(_broker(broker))
    process = start_api(home)
    target = Target(
        home,
        broker,
        process,
        httpx2.Client(timeout=2 * SECONDS_AT_MOST),
        home.parent / "data.jsonl",
    )
    try:
        target.http.base_url = httpx2.URL(url_of(process, home))
        until_ready(target.url)
        target.data.write_text(ROWS, encoding="utf-8")
        for name in ("ended", "waiting"):
            reply = target.http.post("/api/v1/jobs/", json=target.body(name=name))
            assert reply.status_code == 201, reply.text
            setattr(target, name, reply.json()["uuid"])
        asyncio.run(_tell(target))
        _until_published(home)
    except BaseException:
        target.stop()
        raise
    target.fill = {"uuid": target.ended, "host": target.host, "step": "3", "name": "HF_TOKEN"}
    return target


def _until_published(home: Path) -> None:
    """Wait until the api has noted that the broker has what it was asked for; nothing changes by itself then."""
    deadline = time.monotonic() + SECONDS_AT_MOST
    with closing(sqlite3.connect(f"file:{home / 'api/main.db'}?mode=ro", uri=True)) as connection:
        while connection.execute("SELECT count(*) FROM request WHERE epoch IS NULL").fetchone()[0]:
            assert time.monotonic() < deadline, "requests are still unpublished"
            time.sleep(0.02)


async def _broker(broker: RunningBroker) -> None:
    await broker.start()
    await broker.add_host("h1")
    bus = await Bus.connect(bus_config(broker.settings, "scheduler"), timeout=START_SECONDS)
    await ensure_streams(bus, store_mib=TEST_STORE_MIB)
    await bus.close()


async def _tell(target: Target) -> None:
    """Speak as the scheduler and as host h1: one job has run to its end, the other waits."""
    roles: list[tuple[str, str | None]] = [("scheduler", None), ("agent", "h1")]
    scheduler, agent = [
        await Bus.connect(bus_config(target.broker.settings, role, host), timeout=START_SECONDS)  # type: ignore[arg-type]
        for role, host in roles
    ]
    now = datetime.now(UTC)

    async def say(bus: Bus, subject: str, event: EventBase) -> None:
        envelope = Envelope(new_message_id(), "/trainyard/test", now)
        await bus.publish(subject, event, envelope, msg_id=new_message_id())

    host = HostUpdated(
        at=now, host="h1", host_n=1, label="box1", online=True, drained=False, last_seen=now,
        inventory=HostInventory(
            hostname=socket.gethostname(), label="box1", device="cpu", memory_mib=64_000
        ),
    )  # fmt: skip
    await say(scheduler, "host.h1", host)
    waits = JobState(job=target.waiting, job_n=1, req_n=1, submitted_at=now)
    await say(scheduler, f"job.{target.waiting}", JOB_EVENTS[Change.QUEUED](at=now, state=waits))  # type: ignore[call-arg]
    job, tail = target.ended, f"h1.{target.ended}.1"
    runs = JobState(
        job=job, job_n=1, req_n=1, submitted_at=now, attempt=1, host="h1", status=JobStatus.RUNNING
    )
    await say(scheduler, f"job.{job}", JOB_EVENTS[Change.ASSIGNED](at=now, state=runs))  # type: ignore[call-arg]
    path = str(target.home / "checkpoints" / job / "checkpoint-3")
    Path(path).mkdir(parents=True)
    (Path(path) / "manifest.json").write_text("{}", encoding="utf-8")
    facts: list[EventBase] = [
        RunStarted(seq=1, t=1e9, pid=1, boot_id="b", warm=True),
        RunCheckpoint(seq=2, t=1e9, step=3, path=path, size_bytes=10, metrics={"loss": 1.0}),
        RunExited(seq=3, t=1e9, outcome="completed", step=6, last_seq={"met": 6}),
    ]
    for fact in facts:
        await say(agent, f"run.{tail}", fact)
    items = [metric(step, loss=2.0 / step, grad_norm=float("nan")) for step in range(1, 7)]
    await say(agent, f"met.{tail}", met(1, items))
    await say(agent, f"log.{tail}", log(1, ["one", "\x1b[31mtwo", "</script>"]))
    sample = {"t": 1e9, "step": 3, "prompt": "p", "completion": "c", "reward": 0.5}
    await say(agent, f"smp.{tail}", SampleBatch(first_seq=1, items=(sample,)))
    gpu = {"index": 0, "utilization": 5.0, "memory_used_mib": 1.0, "memory_mib": 2.0}
    used = {"t": 1e9, "gpus": [gpu], "cpu_percent": 3.0, "rss_mib": 9.0}
    await say(agent, f"met.{tail}", SystemBatch(first_seq=1, items=(used,)))
    done = runs.model_copy(
        update={"job_n": 2, "status": JobStatus.COMPLETED, "finished_at": now, "started_at": now}
    )
    await say(scheduler, f"job.{job}", JOB_EVENTS[Change.COMPLETED](at=now, state=done))  # type: ignore[call-arg]
    for bus in (scheduler, agent):
        await bus.close()

    def seen() -> bool:
        shown = target.http.get(f"/api/v1/jobs/{job}").json()
        logs = target.http.get(f"/api/v1/jobs/{job}/logs").json()
        points = target.http.get(f"/api/v1/jobs/{job}/metrics").json()
        stored = target.http.get(f"/api/v1/jobs/{job}/checkpoints").json()
        return bool(
            shown["status"] == "COMPLETED" and len(logs["items"]) == 3 and points["x"] and stored
        )

    await eventually(seen, 20)


def check_refusal(reply: Any, *, chinese: bool = False) -> dict[str, Any]:
    """Assert that an answer is a clear, safe problem document, and return it."""
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:500])
    assert reply.headers["content-type"] == "application/problem+json", reply.text[:500]
    problem: dict[str, Any] = json.loads(reply.content)
    assert {"type", "title", "status", "detail", "code", "instance"} <= set(problem), problem
    assert problem["status"] == reply.status_code
    # Only the api numbers its requests.
    assert reply.headers.get("x-request-id") == problem.get("request_id")
    assert bool(CHINESE.search(problem["detail"])) is chinese, problem["detail"]
    assert problem["detail"].rstrip().endswith((".", "。", "?", "？", ")", "）", "…")), problem[
        "detail"
    ]
    texts = [problem["detail"]]
    for error in problem.get("errors", []):
        assert {"field", "value", "message", "allowed", "code"} <= set(error), error
        assert error["field"], error
        assert bool(CHINESE.search(error["message"])) is chinese, error["message"]
        assert "see /docs" not in error["message"], error
        texts += [error["field"], error["message"], str(error["value"])]
        assert len(str(error["value"])) <= 300, error
    for text in texts:
        assert len(text) <= 3000, text[:200]
        assert not CONTROL.search(text), text
        assert "Traceback" not in text
        assert "site-packages" not in text
    return problem
