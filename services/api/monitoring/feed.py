"""The frames of one job for one client, in order and each once: first from the database, then as they are committed.

Live frames are a hint: whatever number is missing between them is read from the database, so nothing depends on
every commit being announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import Session

from services.api.monitoring.hub import Subscription, first_seq, slow_client_gap
from services.api.telemetry import tables
from services.api.telemetry.frames import Frame, next_frame, read_frames
from shared.db import Database
from shared.jobs.lifecycle import JobState

WINDOW = 500
"""Frame numbers read at once."""
RECHECK_SECONDS = 10.0
"""An idle feed looks into the database this often, in case a commit went through that its writer never saw."""


@dataclass(frozen=True, slots=True)
class Head:
    """How far a job's frames go."""

    job_id: int
    seq: int
    ended_seq: int | None


def read_head(session: Session, job: str) -> Head | None:
    """Return the newest frame number of a job, None before its first."""
    c = tables.job_live.c
    row = session.execute(select(c.id, c.frame_seq, c.ended_seq).where(c.job == job)).one_or_none()
    return Head(row.id, row.frame_seq, row.ended_seq) if row else None


def shown_state(session: Session, job: str) -> JobState | None:
    """Return the state that the newest status frame showed; None before one, or while one is yet to come."""
    c = tables.job_live.c
    row = session.execute(select(c.state, c.pending).where(c.job == job)).one_or_none()
    if row is None or row.state is None or row.pending is not None:
        return None
    return JobState.model_validate_json(row.state)


class Feed:
    """Iterate over `frames()`; `last` is the number of the newest frame handed out."""

    def __init__(
        self, database: Database, subscription: Subscription, job: str, after: int
    ) -> None:
        """Deliver frames numbered above `after`; `subscription` must have begun before `after` was read."""
        self._database = database
        self._subscription = subscription
        self._job = job
        self.last = after

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield frames until the job has ended."""
        while True:
            # What is queued up to here is in the database; what comes later is above `head`.
            self._subscription.clear()
            head = await self._database.read(lambda s: read_head(s, self._job))
            if head is not None and head.seq > self.last:
                async for frame in self._replay(head.job_id, head.seq):
                    yield frame
                continue
            if head is not None and head.ended_seq is not None and self.last >= head.ended_seq:
                return
            async for frame in self._live():
                yield frame
                if frame.ends:
                    return

    async def _live(self) -> AsyncIterator[Frame]:
        """Yield frames as they are committed; return when none came for RECHECK_SECONDS."""
        while await self._arrived():
            for entry in self._subscription.take():
                if entry.seq <= self.last:
                    continue
                first = first_seq(entry)
                if first > self.last + 1:
                    head = await self._database.read(lambda s: read_head(s, self._job))
                    if head is not None:
                        async for frame in self._replay(head.job_id, first - 1):
                            yield frame
                shown = entry
                if first < entry.seq:
                    shown = slow_client_gap(self.last + 1, entry.seq, entry.time)
                self.last = entry.seq
                yield shown
            self._subscription.caught_up()

    async def _arrived(self) -> bool:
        try:
            async with asyncio.timeout(RECHECK_SECONDS):
                await self._subscription.wait()
        except TimeoutError:
            return False
        return True

    async def _replay(self, job_id: int, upto: int) -> AsyncIterator[Frame]:
        while self.last < upto:
            start, stop = self.last, min(self.last + WINDOW, upto)
            window = await self._database.read(
                lambda s, a=start, b=stop: read_frames(s, job_id, a, b)  # type: ignore[misc]
            )
            for frame in window:
                self.last = frame.seq
                yield frame
            self.last = stop
            if not window and stop < upto:
                # Numbers jump where a database was lost or restored: go on before the next frame there is.
                following = await self._database.read(
                    lambda s, a=stop: next_frame(s, job_id, a)  # type: ignore[misc]
                )
                self.last = upto if following is None else min(following - 1, upto)
