"""The two neighbours of the scheduler, played over the real bus: users' requests on one side, a host on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.scheduler.core.state import Limits
from services.scheduler.leader import Leadership
from services.scheduler.loop import Loop, no_crash
from services.scheduler.main import open_database
from shared.bus import Bus, BusUnavailable
from shared.clock import SystemClock
from shared.db import Database
from shared.events import decode, subjects
from shared.events.base import Envelope, EventBase
from shared.events.calls import ControlEntry, Heartbeat, HeartbeatReply, RunReport
from shared.events.job import JobEventBase
from shared.events.requests import JobSubmitRequested
from shared.events.run import RunAccepted, RunExited, RunFact, RunStarted
from shared.ids import new_message_id
from shared.jobs.lifecycle import JobState
from shared.jobs.resources import HostInventory
from shared.settings import Settings
from tests.conftest import TEST_STORE_MIB, eventually
from tests.unit.scheduler.build import EPOCH, a_config, an_inventory, job_id

FAST = Limits(lease_ttl=600, backoff_first=0.05)
READ_SECONDS = 60.0


class Crash(BaseException):
    """What a crash point raises: nothing may catch it and go on."""


class CrashAt:
    """Raise at the n-th pass of a named point, and at every point from then on: the process is dead."""

    def __init__(self, point: str, number: int) -> None:
        self.point = point
        self.left = number
        self.fired = False

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            self.fired = self.fired or self.left == 0
        if self.fired:
            raise Crash(point)


class Scheduler:
    """A Loop in a task of this process, on a database of its own connection."""

    def __init__(
        self, bus: Bus, settings: Settings, limits: Limits = FAST, crash: Any = no_crash
    ) -> None:
        self.database: Database = open_database(settings)
        self.loop = Loop(bus, self.database, SystemClock(), limits, crash, TEST_STORE_MIB)
        self.task = asyncio.create_task(self.loop.run())

    async def ready(self) -> Scheduler:
        await eventually(lambda: self.loop.desk is not None or self.task.done())
        return self

    async def stop(self) -> None:
        self.loop.stop()
        with contextlib.suppress(BaseException):
            await asyncio.wait_for(self.task, 60)
        await asyncio.to_thread(self.database.close)

    async def crashed(self) -> None:
        """Wait for the crash, and leave everything as a killed process would: unreleased."""
        await asyncio.wait([self.task], timeout=120)
        assert self.task.done(), "the crash point was never reached"
        error = self.task.exception()
        assert isinstance(error, BaseExceptionGroup | Crash), error
        await asyncio.to_thread(self.database.close)


class Users:
    """Publishes requests as the api does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.req_n: dict[str, int] = defaultdict(int)

    async def submit(self, number: int, **config: Any) -> str:
        job = job_id(number)
        self.req_n[job] += 1
        event = JobSubmitRequested(
            job=job, req_n=self.req_n[job], at=EPOCH, name=f"job{number}", config=a_config(**config)
        )
        await publish(self.bus, subjects.request(job), event)
        return job

    async def ask(self, number: int, kind: type[Any], **fields: Any) -> None:
        job = job_id(number)
        self.req_n[job] += 1
        event = kind(job=job, req_n=self.req_n[job], at=EPOCH, **fields)
        await publish(self.bus, subjects.request(job), event)


class HostActor:
    """A host that does what its control keys say, and says so; each run takes `work` seconds."""

    def __init__(self, bus: Bus, host: str, gpus: int = 1, boot_id: str = "b1") -> None:
        self.bus = bus
        self.host = host
        self.boot_id = boot_id
        self.instance = new_message_id()
        self.inventory: HostInventory = an_inventory(f"{host}-label", gpus)
        self.seen: list[ControlEntry] = []
        self.done: set[tuple[str, int]] = set()
        self.open: dict[str, int] = {}
        self.seq: dict[tuple[str, int], int] = defaultdict(int)
        self.finish = True
        self.restored = ""

    async def beat(self) -> HeartbeatReply:
        runs = tuple(RunReport(job=j, attempt=a, alive=True) for j, a in self.open.items())
        heartbeat = Heartbeat(
            instance=self.instance,
            boot_id=self.boot_id,
            inventory=self.inventory,
            runs=runs,
            restored=self.restored,
        )
        deadline = asyncio.get_running_loop().time() + 60
        while True:
            try:
                return await self.bus.request(
                    subjects.heartbeat(self.host), heartbeat, HeartbeatReply, timeout=0.5
                )
            except BusUnavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def fact(self, job: str, attempt: int, kind: type[Any], **fields: Any) -> RunFact:
        self.seq[job, attempt] += 1
        fact = kind(seq=self.seq[job, attempt], t=0.0, **fields)
        await publish(self.bus, f"run.{self.host}.{job}.{attempt}", fact)
        return fact

    async def reconcile(self) -> None:
        """Do once what the keys say."""
        ctl = self.bus.control()
        entries = await ctl.entries(self.host)
        for key, value in entries.items():
            if key.endswith(".epoch"):
                continue
            entry = ControlEntry.model_validate_json(value)
            run = (entry.job, entry.attempt)
            if run in self.done:
                continue
            if entry.desired == "run":
                await self._run(entry)
            elif entry.job in self.open:
                mode = entry.stop_mode
                await self._exit(*run, outcome="stopped", stop_cause=mode)

    async def _run(self, entry: ControlEntry) -> None:
        job, attempt = entry.job, entry.attempt
        if self.open.get(job) != attempt:
            self.seen.append(entry)
            self.open[job] = attempt
            await self.fact(job, attempt, RunAccepted, gpus=entry.gpus)
            await self.fact(job, attempt, RunStarted, pid=1, boot_id=self.boot_id, warm=True)
        if self.finish:
            await self._exit(job, attempt, outcome="completed", final_metrics={"loss": 1.0})

    async def _exit(self, job: str, attempt: int, **fields: Any) -> None:
        await self.fact(job, attempt, RunExited, last_seq={"run": 3}, **fields)
        self.open.pop(job, None)
        self.done.add((job, attempt))

    async def live(self) -> None:
        """Beat and reconcile for ever, as an agent whose scheduler may come and go."""
        while True:
            with contextlib.suppress(Exception):
                await self.beat()
                await self.reconcile()
            await asyncio.sleep(0.05)


class Feed:
    """Reads JOBS as a projection does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def events(self) -> list[tuple[str, JobState]]:
        """Return every event that the stream holds now, however long the broker takes to send them."""
        state = await self.bus.stream_state("JOBS")
        if state.messages == 0:
            return []
        reader = await self.bus.reader("JOBS", after=0, epoch=None)
        found, last = [], 0
        try:
            while last < state.last_seq:
                messages = await reader.fetch(512, READ_SECONDS)
                assert messages, f"read up to {last} of {state.last_seq}"
                last = messages[-1].seq
                for message in messages:
                    _, event = decode(message.headers, message.data)
                    if isinstance(event, JobEventBase):
                        found.append((event.change.value, event.state))
        finally:
            await reader.close()
        return found

    async def latest(self, number: int) -> JobState | None:
        mine = [s for _, s in await self.events() if s.job == job_id(number)]
        return max(mine, key=lambda s: s.job_n) if mine else None

    async def status(self, number: int) -> str:
        state = await self.latest(number)
        return state.status.value if state else ""


async def publish(bus: Bus, subject: str, event: EventBase) -> None:
    identity = new_message_id()
    envelope = Envelope(identity, "/test", datetime.now(UTC))
    await bus.publish(subject, event, envelope, msg_id=identity)


def rows(home: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the scheduler's SQLite file from outside."""
    import sqlite3  # noqa: PLC0415 - only these tests look into the file

    with contextlib.closing(sqlite3.connect(home / "scheduler.db")) as connection:
        return connection.execute(query).fetchall()


__all__ = [
    "Crash",
    "CrashAt",
    "Feed",
    "HostActor",
    "Leadership",
    "Scheduler",
    "Users",
    "publish",
    "rows",
]
