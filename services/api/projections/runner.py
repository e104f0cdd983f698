"""The projector: reads six streams into the main and the telemetry database and announces what it committed.

The main database is written first, so that REST is never behind a status frame. It survives an absent broker and a
busy database by trying again from the stored positions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlmodel import col

from services.api.db.positions import START, Position, load_position
from services.api.db.tables import JobRow
from services.api.monitoring.hub import Hub
from services.api.projections.stream import TRANSIENT, StreamProjection
from services.api.projections.upkeep import Upkeep, forever
from services.api.projections.writing import Commit, TelemetryWriter
from services.api.telemetry.acks import DiskBarrier, answer, without_answer
from services.api.telemetry.database import Superseded, take_over
from services.api.telemetry.dead_letters import Rejected
from shared.bus import Bus
from shared.bus.port import BusError
from shared.clock import Clock
from shared.db import Database
from shared.events.base import EventBase
from shared.events.calls import AckQuery
from shared.log import logger
from shared.restored import frame_base

STREAMS = ("JOBS", "RUNS", "METRICS", "LOGS", "SAMPLES", "REWARD")
CATCH_UP_SECONDS = 10.0
log = logger("projector")


@dataclass(slots=True)
class ProjectorStats:
    """Counters since the start, for `/metrics`."""

    applied: Counter[str] = field(default_factory=Counter)
    """Messages by stream."""
    stale: Counter[str] = field(default_factory=Counter)
    """`stale_events{reason}`: items counted and not stored."""
    dead: Counter[str] = field(default_factory=Counter)
    """Messages put aside, by reason."""
    retries: Counter[str] = field(default_factory=Counter)
    """Pauses before another try, by stream."""
    points: int = 0


class Projector:
    """`start` it once; `superseded` is set when a newer projector has taken over and this one stopped."""

    def __init__(
        self, bus: Bus, main_db: Database, telemetry_db: Database, clock: Clock, hub: Hub
    ) -> None:
        """Do nothing yet."""
        self.stats = ProjectorStats()
        self.superseded = asyncio.Event()
        self._bus = bus
        self._main = main_db
        self._telemetry = telemetry_db
        self._clock = clock
        self._positions: dict[str, Position] = dict.fromkeys(STREAMS, START)
        self._moved = asyncio.Condition()
        self._writer = TelemetryWriter(telemetry_db, hub, clock)
        self._barrier = DiskBarrier(telemetry_db)
        self._upkeep = Upkeep(
            bus, telemetry_db, self._writer, self._barrier, clock, self._positions
        )
        self._projections = [
            StreamProjection(name, bus, main_db, telemetry_db, self._writer, self)
            for name in STREAMS
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Take the databases over and begin to read. Raises DatabaseBusy, BusUnavailable."""
        jobs_position = await self._main.read(lambda s: load_position(s, "JOBS"))
        # A telemetry database that is new beside a read model that is not: the old one was lost. Frame numbers
        # handed out before must not come again.
        base = 0 if jobs_position == START else frame_base(self._clock.now().timestamp())
        self._writer.token = await self._telemetry.write(lambda s: take_over(s, base))
        for name in STREAMS:
            self._positions[name] = await self._telemetry.read(
                lambda s, n=name: load_position(s, n)  # type: ignore[misc]
            )
        await self._upkeep.load()
        served = await self._bus.serve("ack.*", self._on_ack)
        self._stack.push_async_callback(served.close)
        for projection in self._projections:
            name = f"project-{projection.stream}"
            self._tasks.append(asyncio.create_task(projection.follow(), name=name))
        upkeep = forever(self._upkeep, self._upkeep_failed)
        self._tasks.append(asyncio.create_task(upkeep, name="project-upkeep"))

    async def stop(self) -> None:
        """Stop reading; what was fetched and not committed is read again at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        with contextlib.suppress(BusError):
            await self._stack.aclose()

    def lag(self) -> dict[str, int]:
        """Return, by stream, how many messages are not applied yet, as of the last look (every 2 s)."""
        found: dict[str, int] = {}
        for stream, (epoch, last) in self._upkeep.heads.items():
            position = self._positions[stream]
            done = position.last_seq if position.epoch == epoch else 0
            found[stream] = max(0, last - done)
        return found

    @property
    def ready(self) -> bool:
        """Tell whether every stream is being read and no newer projector has taken over."""
        return all(p.healthy for p in self._projections) and not self.superseded.is_set()

    # ---- what the projections of single streams tell and ask

    async def committed(
        self, stream: str, position: Position, messages: int, commit: Commit | None
    ) -> None:
        """Note what a stream has stored."""
        self._positions[stream] = position
        self.stats.applied[stream] += messages
        if commit is not None:
            self.stats.stale.update(commit.outcome.stale)
            self.stats.points += commit.outcome.points
            self.stats.dead.update(reason for _, reason in commit.outcome.rejected)
        if stream == "JOBS":
            async with self._moved:
                self._moved.notify_all()

    async def catch_up_jobs(self) -> None:
        """Return once JOBS is applied up to what it holds now. Raises BusError, TimeoutError."""
        head = await self._bus.stream_state("JOBS")

        def done() -> bool:
            position = self._positions["JOBS"]
            same = position.epoch == head.epoch or head.last_seq == 0
            return same and position.last_seq >= head.last_seq

        async with asyncio.timeout(CATCH_UP_SECONDS), self._moved:
            await self._moved.wait_for(done)

    def rejected(self, rejected: Sequence[Rejected]) -> None:
        """Count messages that could not even be read."""
        self.stats.dead.update(reason for _, reason, _ in rejected)

    def paused(self, stream: str) -> None:
        """Count a pause of a stream."""
        self.stats.retries[stream] += 1

    def give_way(self) -> None:
        """Stop for good: another projector holds the database."""
        if not self.superseded.is_set():
            log.error("projector_superseded")
            self.superseded.set()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _upkeep_failed(self, error: Exception) -> None:
        if isinstance(error, Superseded):
            self.give_way()
            raise asyncio.CancelledError
        if isinstance(error, TRANSIENT):
            log.info("upkeep_waits", error=str(error)[:300])
        else:
            log.error("upkeep_failed", exc_info=error)

    async def _strange(self, jobs: set[str]) -> set[str]:
        """Return the jobs that nobody ever submitted here, as far as this database goes: it may have been restored.

        Empty where that cannot be told yet. Raises DatabaseBusy.
        """
        try:
            await self.catch_up_jobs()
        except (BusError, TimeoutError):
            return set()
        known = select(col(JobRow.uuid)).where(col(JobRow.uuid).in_(sorted(jobs)))
        return jobs - set(await self._main.read(lambda s: list(s.execute(known).scalars())))

    async def _on_ack(self, subject: str, data: bytes) -> EventBase | None:
        """Answer `ack.<host>`: what is stored and on disk. Silent once superseded."""
        if self.superseded.is_set():
            return None
        query = AckQuery.model_validate_json(data)
        host = subject.split(".", 1)[1]
        reply = await self._telemetry.read(lambda s: answer(s, host, query))
        unknown = without_answer(query, reply)
        if unknown:
            strange = await self._strange({c.job for c in unknown})
            refused = [c for c in unknown if c.job in strange]
            reply = reply.model_copy(update={"refused": (*reply.refused, *refused)})
        await self._barrier.passed()
        return reply
