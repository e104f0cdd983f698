"""What the projector does beside reading: terminal frames that waited long enough, purging, lag, deleted jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy import select
from sqlmodel import Session

from services.api.db.positions import Position
from services.api.projections.writing import FINAL_SECONDS, TelemetryWriter
from services.api.telemetry import tables
from services.api.telemetry.acks import DiskBarrier
from services.api.telemetry.dead_letters import trim
from services.api.telemetry.removal import delete_job, jobs_to_empty
from shared.bus import Bus
from shared.clock import Clock
from shared.db import Database

TICK_SECONDS = 0.25
PURGE_SECONDS = 5.0
PURGED = ("METRICS", "LOGS", "SAMPLES")
"""Streams whose messages are dropped once they are stored: the rows are the only copy wanted."""


class Upkeep:
    """Jobs to do now and then, each with its own interval; `tick` is called every TICK_SECONDS."""

    def __init__(
        self,
        bus: Bus,
        database: Database,
        writer: TelemetryWriter,
        barrier: DiskBarrier,
        clock: Clock,
        positions: Mapping[str, Position],
    ) -> None:
        """`positions` are the committed ones, kept by the projector."""
        self.heads: dict[str, tuple[str, int]] = {}
        """Epoch and last sequence of every stream, as last seen."""
        self._bus = bus
        self._database = database
        self._writer = writer
        self._barrier = barrier
        self._clock = clock
        self._positions = positions
        self._purged: dict[str, Position] = {}
        self._due: dict[str, float] = {}

    async def load(self) -> None:
        """Take up what an earlier projector left: frames that wait, jobs to empty."""

        def work(session: Session) -> list[str]:
            c = tables.job_live.c
            waiting = select(c.job).where(tables.OPEN_WORK, c.pending.is_not(None))
            return list(session.execute(waiting).scalars())

        deadline = self._clock.boot() + FINAL_SECONDS
        for job in await self._database.read(work):
            self._writer.deadlines.setdefault(job, deadline)
        self._writer.deleted.update(await self._database.read(jobs_to_empty))

    async def tick(self) -> None:
        """Do whatever is due. Raises BusError or a database error; what failed is due again next time."""
        await self._finish()
        work: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("empty", 1.0, self._empty),
            ("heads", 2.0, self._look),
            ("purge", PURGE_SECONDS, self._purge),
            ("trim", 60.0, self._trim),
        ]
        for name, seconds, action in work:
            now = self._clock.boot()
            if now >= self._due.get(name, 0.0):
                await action()
                self._due[name] = now + seconds

    async def _finish(self) -> None:
        now = self._clock.boot()
        late = [job for job, deadline in self._writer.deadlines.items() if now >= deadline]
        if late:
            await self._writer.finish(late[:100])

    async def _empty(self) -> None:
        for job in sorted(self._writer.deleted):
            await delete_job(self._database, job)
            self._writer.deleted.discard(job)

    async def _look(self) -> None:
        for stream in self._positions:
            state = await self._bus.stream_state(stream)
            self.heads[stream] = (state.epoch, state.last_seq)

    async def _purge(self) -> None:
        committed = {stream: self._positions[stream] for stream in PURGED}
        if all(self._purged.get(stream) == committed[stream] for stream in PURGED):
            return
        await self._barrier.passed()
        for stream, position in committed.items():
            if self._purged.get(stream) == position or position.last_seq == 0:
                continue
            state = await self._bus.stream_state(stream)
            if state.epoch == position.epoch:
                await self._bus.purge_upto(stream, position.last_seq)
                self._purged[stream] = position

    async def _trim(self) -> None:
        await self._database.write(trim)


async def forever(upkeep: Upkeep, failed: Callable[[Exception], None]) -> None:
    """Tick until cancelled; `failed` hears of every error and decides whether to go on (by not raising)."""
    while True:
        try:
            await upkeep.tick()
        except Exception as error:  # noqa: BLE001 - handed on
            failed(error)
        await asyncio.sleep(TICK_SECONDS)
