"""Writes to the telemetry database: one at a time, under the projector's token, announced after the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlmodel import Session

from services.api.monitoring.hub import Hub
from services.api.projections.fence import advance, fresh_items, restart
from services.api.projections.main import Item
from services.api.projections.telemetry import (
    Outcome,
    apply_batches,
    apply_jobs,
    apply_run_facts,
    finish,
)
from services.api.telemetry.chunks import seal, tail_is_full
from services.api.telemetry.database import hold
from services.api.telemetry.dead_letters import Rejected, bury
from services.api.telemetry.frames import Frame, frame_of_line, frame_of_record
from services.api.telemetry.ledger import Ledger, Written
from shared.bus.port import BusMessage
from shared.clock import Clock
from shared.db import Database
from shared.events.job import JobEventBase
from shared.events.subjects import RunSubject

FINAL_SECONDS = 30.0
"""How long a terminal frame waits for the last telemetry of its attempt."""


@dataclass(slots=True)
class Commit:
    """What one transaction did, once it is committed."""

    outcome: Outcome = field(default_factory=Outcome)
    written: dict[str, Written] = field(default_factory=dict)
    waiting: dict[str, bool] = field(default_factory=dict)
    """Jobs touched: does their terminal frame wait?"""
    deleted: list[str] = field(default_factory=list)
    full_tails: list[int] = field(default_factory=list)


class TelemetryWriter:
    """`token` comes from `take_over`; writes raise Superseded when a newer projector holds the database."""

    def __init__(self, database: Database, hub: Hub, clock: Clock) -> None:
        """Write to one database and tell one hub."""
        self.token = 0
        self.deadlines: dict[str, float] = {}
        """Jobs whose terminal frame waits, and until when (boot clock)."""
        self.deleted: set[str] = set()
        """Jobs whose rows are to be dropped."""
        self._database = database
        self._hub = hub
        self._clock = clock
        # One write after the other, so that frames are announced in the order of their numbers.
        self._turn = asyncio.Lock()

    async def apply(
        self,
        stream: str,
        items: Sequence[Item],
        rejected: Sequence[Rejected],
        last: BusMessage,
    ) -> Commit | None:
        """Store messages of a stream and its position `last`; None when they were stored before."""
        now = self._clock.now().timestamp()

        def work(session: Session) -> Commit | None:
            base = hold(session, self.token)
            applied = advance(session, stream, last.epoch, last.seq)
            if applied is None:
                return None
            fresh = fresh_items(applied, items)
            commit = Commit()
            ledger = Ledger(session, _jobs_of(stream, fresh), base)
            if stream == "JOBS":
                apply_jobs(ledger, fresh, now)
            elif stream == "RUNS":
                apply_run_facts(ledger, fresh, commit.outcome)
            elif stream != "REWARD":  # nothing of that is telemetry; only its position is kept here
                apply_batches(ledger, fresh, commit.outcome)
            found = [(message, reason, "") for message, reason in commit.outcome.rejected]
            bury(session, [*rejected, *found], now)
            return _flushed(ledger, commit)

        return await self._write(work)

    async def finish(self, jobs: Sequence[str]) -> None:
        """Stop waiting: allot the terminal frames of `jobs`, with a gap for what is missing."""
        now = self._clock.now().timestamp()

        def work(session: Session) -> Commit:
            base = hold(session, self.token)
            ledger = Ledger(session, jobs, base)
            for live in ledger.jobs.values():
                finish(ledger, live, now)
            return _flushed(ledger, Commit())

        await self._write(work)
        for job in jobs:
            self.deadlines.pop(job, None)

    async def restart(self, stream: str, epoch: str) -> None:
        """Go back to the beginning of a stream that was made anew."""

        def work(session: Session) -> None:
            hold(session, self.token)
            restart(session, stream, epoch)

        async with self._turn:
            await self._database.write(work)

    async def _write(self, work: Callable[[Session], Commit | None]) -> Commit | None:
        async with self._turn:
            commit = await self._database.write(work)
            if commit is None:
                return None
            self._note(commit)
        for job_id in commit.full_tails:
            async with self._turn:
                await self._database.write(lambda s, i=job_id: seal(s, i))  # type: ignore[misc]
        return commit

    def _note(self, commit: Commit) -> None:
        """Announce frames and remember deadlines; without any await, so the order is that of the commits."""
        for job, waits in commit.waiting.items():
            if waits:
                self.deadlines.setdefault(job, self._clock.boot() + FINAL_SECONDS)
            else:
                self.deadlines.pop(job, None)
        self.deleted.update(commit.deleted)
        for job, written in commit.written.items():
            if self._hub.wants(job):
                self._hub.publish(job, _frames(written))


def _flushed(ledger: Ledger, commit: Commit) -> Commit:
    ledger.flush()
    commit.written = ledger.written
    for job, live in ledger.jobs.items():
        commit.waiting[job] = live.pending is not None
        if live.deleted == 1:
            commit.deleted.append(job)
        if tail_is_full(live.tail_lines, live.tail_points):
            commit.full_tails.append(live.id)
    return commit


def _frames(written: Written) -> list[Frame]:
    frames = [frame_of_record(row) for row in written.records]
    frames += [frame_of_line(row) for row in written.lines]
    frames.sort(key=lambda frame: frame.seq)
    for frame in frames:
        frame.ends = frame.seq == written.ended_seq
    return frames


def _jobs_of(stream: str, items: Sequence[Item]) -> set[str]:
    if stream == "REWARD":
        return set()
    if stream == "JOBS":
        return {event.state.job for _, _, event in items if isinstance(event, JobEventBase)}
    return {RunSubject.parse(message.subject).job for message, _, _ in items}
