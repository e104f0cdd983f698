"""One stream into the databases, from wherever the stored positions say, for as long as the api lives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlmodel import Session

from services.api.db.positions import Position, load_position
from services.api.projections.decoding import decoded, sized_parts
from services.api.projections.fence import PositionMoved, advance, fresh_items, restart
from services.api.projections.main import Item, apply_main
from services.api.projections.writing import Commit, TelemetryWriter
from services.api.telemetry import tables
from services.api.telemetry.database import Superseded
from services.api.telemetry.dead_letters import Rejected
from shared.bus import Bus
from shared.bus.port import BusError, BusMessage, StreamReset
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.events.subjects import RunSubject
from shared.log import logger

MAIN_STREAMS = frozenset({"JOBS", "RUNS", "REWARD"})
FETCH_MESSAGES = 128
FETCH_SECONDS = 1.0
FIRST_FETCH_SECONDS = 0.05
"""After a start or a failure: the first answer of the broker, be it that there is nothing, makes a stream healthy."""
DECODE_INLINE_BYTES = 65_536
"""Larger batches are parsed in a thread, so that the event loop goes on serving."""
BACKOFF_FIRST, BACKOFF_MAX = 0.05, 5.0
KNOWN_LIMIT = 50_000
TRANSIENT = (
    BusError,
    DatabaseBusy,
    DatabaseFull,
    OperationalError,
    InterfaceError,
    PositionMoved,
    TimeoutError,
    OSError,
)
"""Errors after which the same messages are tried again."""
log = logger("projector")


class Owner(Protocol):
    """What a stream's projection tells and asks its projector."""

    async def committed(
        self, stream: str, position: Position, messages: int, commit: Commit | None
    ) -> None:
        """Note what was stored."""

    async def catch_up_jobs(self) -> None:
        """Return once JOBS is applied up to its present end."""

    def give_way(self) -> None:
        """Stop everything: superseded."""

    def rejected(self, rejected: Sequence[Rejected]) -> None:
        """Count messages put aside."""

    def paused(self, stream: str) -> None:
        """Count a pause."""


class StreamProjection:
    """Follows one stream; `healthy` while the broker answers and the databases take the rows."""

    def __init__(
        self,
        stream: str,
        bus: Bus,
        main_db: Database,
        telemetry_db: Database,
        writer: TelemetryWriter,
        owner: Owner,
    ) -> None:
        """Do nothing yet."""
        self.stream = stream
        self.healthy = False
        self._bus = bus
        self._main = main_db if stream in MAIN_STREAMS else None
        self._telemetry = telemetry_db
        self._writer = writer
        self._owner = owner
        self._known: set[tuple[str, int]] = set()
        self._delay = BACKOFF_FIRST

    async def follow(self) -> None:
        """Read and apply until cancelled or superseded."""
        while True:
            try:
                await self._read()
            except Superseded:
                self._owner.give_way()
                return
            except TRANSIENT as error:
                if self.healthy:
                    log.warning("projection_waits", stream=self.stream, error=str(error)[:300])
            except Exception:
                log.exception("projection_failed", stream=self.stream)
            self.healthy = False
            self._owner.paused(self.stream)
            await asyncio.sleep(self._delay)
            self._delay = min(self._delay * 2, BACKOFF_MAX)

    async def _read(self) -> None:
        epoch, after = await self._start()
        reader = await self._bus.reader(self.stream, after=after, epoch=epoch)
        try:
            while True:
                patience = FETCH_SECONDS if self.healthy else FIRST_FETCH_SECONDS
                messages = await reader.fetch(max_messages=FETCH_MESSAGES, timeout=patience)
                for part in sized_parts(messages):
                    await self._apply(part)
                self.healthy, self._delay = True, BACKOFF_FIRST
        except StreamReset as reset:
            log.warning("stream_reset", stream=self.stream, epoch=reset.epoch)
            await self._restart(reset.epoch)
        finally:
            await reader.close()

    async def _start(self) -> tuple[str | None, int]:
        """Return where to go on; the main database goes back with telemetry when the api ended between the two.

        What one of them takes the other must see under the same assignments: telemetry confirms facts to their host, and
        the main database may have passed them by when JOBS did not name their attempt yet.
        """

        def position(session: Session) -> Position:
            return load_position(session, self.stream)

        told = await self._telemetry.read(position)
        if self._main is None:
            return told.epoch, told.last_seq
        main = await self._main.read(position)
        epoch = main.epoch if main.epoch is not None else told.epoch
        after = told.last_seq if told.epoch == epoch else 0
        if epoch is None or main.epoch is None or main.last_seq <= after:
            return epoch, min(main.last_seq, after)
        await self._main.write(lambda s: restart(s, self.stream, epoch, after))
        return epoch, after

    async def _restart(self, epoch: str) -> None:
        if self._main is not None:
            await self._main.write(lambda s: restart(s, self.stream, epoch))
        await self._writer.restart(self.stream, epoch)
        await self._owner.committed(self.stream, Position(epoch, 0), 0, None)

    async def _apply(self, messages: Sequence[BusMessage]) -> None:
        """Store messages in order; one that no database takes is put aside, alone."""
        if sum(len(m.data) for m in messages) > DECODE_INLINE_BYTES:
            items, rejected = await asyncio.to_thread(decoded, messages)
        else:
            items, rejected = decoded(messages)
        if self.stream not in ("JOBS", "REWARD"):  # those speak of no attempt
            await self._know(items)
        try:
            await self._store(items, rejected, messages)
        except (*TRANSIENT, Superseded):
            raise
        except Exception as error:
            if len(messages) > 1:
                for message in messages:
                    await self._apply([message])
                return
            log.exception("message_failed", stream=self.stream, seq=messages[0].seq)
            await self._store([], [(messages[0], "failed", repr(error))], messages)

    async def _store(
        self, items: list[Item], rejected: list[Rejected], messages: Sequence[BusMessage]
    ) -> None:
        last = messages[-1]
        if self._main is not None:
            await self._main.write(lambda s: self._write_main(s, items, last))
        commit = await self._writer.apply(self.stream, items, rejected, last)
        if commit is not None:
            self._owner.rejected(rejected)
        await self._owner.committed(
            self.stream, Position(last.epoch, last.seq), len(messages), commit
        )

    def _write_main(self, session: Session, items: list[Item], last: BusMessage) -> None:
        applied = advance(session, self.stream, last.epoch, last.seq)
        if applied is not None:
            apply_main(session, self.stream, fresh_items(applied, items))

    async def _know(self, items: Sequence[Item]) -> None:
        """See to it that the assignment of every attempt spoken of is applied, if there is one.

        The scheduler publishes an assignment before a host can hear of it, so an attempt that is still unknown
        when JOBS is read to its end was never assigned.
        """
        subjects = [RunSubject.parse(message.subject) for message, _, _ in items]
        wanted = {(s.job, s.attempt) for s in subjects} - self._known
        if not wanted:
            return
        found = await self._telemetry.read(lambda s: _assigned(s, {job for job, _ in wanted}))
        if wanted - found:
            await self._owner.catch_up_jobs()
        if len(self._known) > KNOWN_LIMIT:
            self._known.clear()
        self._known |= wanted & found


def _assigned(session: Session, jobs: set[str]) -> set[tuple[str, int]]:
    live, attempt = tables.job_live.c, tables.attempt.c
    rows = session.execute(
        select(live.job, attempt.attempt)
        .join(tables.attempt, attempt.job_id == live.id)
        .where(live.job.in_(jobs))
    )
    return {(row.job, row.attempt) for row in rows}
