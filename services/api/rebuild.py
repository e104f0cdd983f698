"""`python -m services.api rebuild`: make the read model again from the streams JOBS and RUNS, in one transaction.

The api must be stopped. What users asked for (requests, names, secrets) is the api's own truth and stays, and so does
whatever the streams no longer hold. Telemetry stays too: its streams are emptied once stored, so nothing could make it
again, and the frame numbers of every job go on above the highest one handed out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import delete, update
from sqlmodel import Session, col

from services.api.db.databases import migrate_main, open_main
from services.api.db.positions import save_position
from services.api.db.tables import AttemptRow, CheckpointRow, HostRow, JobEventRow, JobRow
from services.api.projections.decoding import decoded
from services.api.projections.main import Item, apply_main
from services.api.settings import ApiSettings
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.bus.port import BusError, BusMessage
from shared.bus.reader import Reader
from shared.db import Database, DatabaseBusy
from shared.events.job import HostUpdated, JobEventBase
from shared.events.run import RunFactBase
from shared.events.subjects import RunSubject

STREAMS = ("JOBS", "RUNS")
PAGE = 256
PAGE_SECONDS = 10.0
CONNECT_SECONDS = 10.0
EX_UNAVAILABLE = 69


@dataclass(slots=True)
class RebuildReport:
    """What was read."""

    applied: Counter[str] = field(default_factory=Counter)
    """Messages by stream."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Messages that could not be read, by reason."""
    truncated: list[str] = field(default_factory=list)
    """Streams that no longer begin with their first message; older rows were kept as they are."""


class RebuildStopped(RuntimeError):
    """The broker stopped answering half-way; nothing was changed."""


@dataclass(slots=True)
class _Cleared:
    """What was made empty already because the stream tells it again from here on."""

    jobs: set[str] = field(default_factory=set)
    attempts: set[tuple[str, int]] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)


async def rebuild(bus: Bus, main_db: Database) -> RebuildReport:
    """Read both streams to their present ends and replace the rows they tell of.

    All in one transaction: a failure leaves everything as it was. Raises RebuildStopped, BusError, DatabaseBusy.
    """
    loop = asyncio.get_running_loop()
    report = RebuildReport()
    sources = [await _source(bus, stream, report) for stream in STREAMS]

    def work(session: Session) -> None:
        cleared = _Cleared()
        for source in sources:
            position = 0
            while position < source.last_seq:
                # The writer thread waits for the event loop to bring the next page.
                page = asyncio.run_coroutine_threadsafe(source.page(), loop).result()
                items, rejected = decoded(page)
                report.rejected.update(reason for _, reason, _ in rejected)
                _clear(session, items, cleared)
                apply_main(session, source.stream, items)
                session.flush()
                session.expunge_all()
                report.applied[source.stream] += len(page)
                position = page[-1].seq
            save_position(session, source.stream, source.epoch, source.last_seq)

    try:
        await main_db.write(work)
    finally:
        for source in sources:
            await source.close()
    return report


class _Source:
    """A stream from its beginning to the end it had when the rebuild began."""

    def __init__(self, bus: Bus, stream: str, epoch: str, last_seq: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.last_seq = last_seq
        self._bus = bus
        self._reader: Reader | None = None

    async def page(self) -> list[BusMessage]:
        """Return the next messages, none beyond the end. Raises RebuildStopped after PAGE_SECONDS of silence."""
        if self._reader is None:
            self._reader = await self._bus.reader(self.stream, after=0, epoch=self.epoch)
        found = await self._reader.fetch(PAGE, timeout=PAGE_SECONDS)
        kept = [message for message in found if message.seq <= self.last_seq]
        if not kept:
            raise RebuildStopped(f"{self.stream} gave nothing for {PAGE_SECONDS:g} s")
        return kept

    async def close(self) -> None:
        """Let the reader go."""
        if self._reader is not None:
            await self._reader.close()


async def _source(bus: Bus, stream: str, report: RebuildReport) -> _Source:
    state = await bus.stream_state(stream)
    if state.first_seq > 1:
        report.truncated.append(stream)
    return _Source(bus, stream, state.epoch, state.last_seq if state.messages else 0)


def _clear(session: Session, items: Sequence[Item], cleared: _Cleared) -> None:
    """Forget what these messages tell again; rows from before the stream's beginning stay."""
    for message, _, event in items:
        if isinstance(event, JobEventBase) and event.state.job not in cleared.jobs:
            cleared.jobs.add(event.state.job)
            job, first = event.state.job, event.state.job_n
            session.execute(
                delete(JobEventRow).where(
                    col(JobEventRow.job) == job, col(JobEventRow.job_n) >= first
                )
            )
            session.execute(update(JobRow).where(col(JobRow.uuid) == job).values(job_n=0))
        elif isinstance(event, HostUpdated) and event.host not in cleared.hosts:
            cleared.hosts.add(event.host)
            session.execute(update(HostRow).where(col(HostRow.id) == event.host).values(host_n=0))
        elif isinstance(event, RunFactBase) and event.seq == 1:
            _clear_attempt(session, RunSubject.parse(message.subject), cleared)


def _clear_attempt(session: Session, subject: RunSubject, cleared: _Cleared) -> None:
    key = (subject.job, subject.attempt)
    row = session.get(AttemptRow, key)
    if key in cleared.attempts or row is None or row.host != subject.host:
        return
    cleared.attempts.add(key)
    row.last_run_seq = 0
    row.started_at = row.exited_at = row.outcome = row.reason = row.exit = None
    session.execute(
        delete(CheckpointRow).where(
            col(CheckpointRow.job) == subject.job, col(CheckpointRow.attempt) == subject.attempt
        )
    )
    session.flush()


def main() -> int:
    """Run the command; return the exit status."""
    settings = ApiSettings()
    if _api_runs(settings):
        _say("The api is running. Stop it first, then run this again.")
        return EX_UNAVAILABLE
    database = open_main(settings)
    try:
        migrate_main(database)
        report = asyncio.run(_connected(settings, database))
    except (BusError, RebuildStopped, DatabaseBusy) as error:
        _say(f"Nothing was changed: {error}. The broker must be running and the api stopped.")
        return EX_UNAVAILABLE
    finally:
        database.close()
    told = ", ".join(f"{count} of {stream}" for stream, count in report.applied.items())
    _say(f"Rebuilt from {told or 'empty streams'}. Telemetry was kept as it is.")
    if report.truncated:
        _say(
            f"{' and '.join(report.truncated)} no longer begin at their first message; older rows were kept."
        )
    if report.rejected:
        _say(f"Messages that could not be read: {dict(report.rejected)}")
    return 0


async def _connected(settings: ApiSettings, database: Database) -> RebuildReport:
    bus = await Bus.connect(bus_config(settings, "api"), timeout=CONNECT_SECONDS)
    try:
        return await rebuild(bus, database)
    finally:
        await bus.close()


def _api_runs(settings: ApiSettings) -> bool:
    """Tell whether the process that wrote the api's run file lives; after a crash the file is left behind."""
    try:
        pid = json.loads((settings.home / "run" / "api.json").read_text())["pid"]
        os.kill(int(pid), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
