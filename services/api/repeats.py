"""Requests that the scheduler has not answered for a while are published again, though the stream is the same.

It may have put them aside (a full hold), or its database was put back by hand. Saying a
request twice is harmless: the scheduler applies each `req_n` once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import literal, select
from sqlmodel import Session, col

from services.api.db.tables import JobRow, RequestRow
from services.api.deps import ApiServices
from services.api.outbox import STREAM, Outgoing, outgoing
from shared.bus.port import BusError
from shared.db import DatabaseBusy
from shared.ids import new_message_id
from shared.log import logger

LOG = logger("api.repeats")
UNANSWERED_SECONDS = 30.0
"""Age from which an unanswered request is said again; doubles with each time, up to LONGEST_SECONDS."""
LONGEST_SECONDS = 3600.0
LOOK_SECONDS = 5.0
AT_ONCE = 100
LOOKED_AT = 2000
STREAM_AT_MOST = 0.5
"""Part of the stream's bound from which nothing is repeated: applied requests leave a stream that is fuller, so the
scheduler is away or behind, and has what it needs."""


@dataclass(frozen=True, slots=True)
class Said:
    """How often a request was repeated, and the boot-clock second from which it is due again."""

    times: int
    due: float


def unanswered(session: Session, epoch: str, before: datetime) -> list[Outgoing]:
    """Return the oldest requests about jobs that are in the stream of `epoch`, were made before `before` and have no answer."""
    jobs = select(literal("job:") + col(JobRow.uuid), col(JobRow.answered_n)).where(
        col(JobRow.answered_n) < col(JobRow.req_n)
    )
    open_jobs = jobs.subquery()
    key, answered = open_jobs.c
    statement = (
        select(RequestRow)
        .join(open_jobs, col(RequestRow.key) == key)
        .where(
            col(RequestRow.req_n) > answered,
            col(RequestRow.epoch) == epoch,
            col(RequestRow.at) < before,
        )
        .order_by(col(RequestRow.position))
        .limit(LOOKED_AT)
    )
    return [outgoing(row) for row in session.execute(statement).scalars()]


def choose(
    waiting: Sequence[Outgoing], said: dict[int, Said], now: float, first: float
) -> tuple[list[Outgoing], dict[int, Said]]:
    """Return what to say now, at most AT_ONCE, and what to remember once that is done."""
    chosen = [o for o in waiting if now >= said.get(o.position, Said(0, 0.0)).due][:AT_ONCE]
    kept = {o.position: said[o.position] for o in waiting if o.position in said}
    for one in chosen:
        times = kept[one.position].times + 1 if one.position in kept else 1
        pause = min(first * 2.0 ** min(times, 20), LONGEST_SECONDS)
        kept[one.position] = Said(times, now + pause)
    return chosen, kept


class Repeats:
    """One task beside the outbox."""

    def __init__(self, services: ApiServices, first: float = UNANSWERED_SECONDS) -> None:
        """Do nothing yet. `first`: seconds after which a request is said again for the first time."""
        self._services = services
        self._first = first
        self._said: dict[int, Said] = {}

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.repeat_once()
            except (BusError, DatabaseBusy, RuntimeError) as error:
                LOG.warning("repeating_waits", error=str(error)[:200])

    async def repeat_once(self) -> int:
        """Say again what is due and return how many requests that were. Raises BusError, DatabaseBusy."""
        services = self._services
        before = services.clock.now() - timedelta(seconds=self._first)
        if not await services.main.read(_any_open):
            self._said = {}
            return 0
        state = await services.link.bus.stream_state(STREAM)
        if state.max_bytes > 0 and state.bytes > state.max_bytes * STREAM_AT_MOST:
            return 0
        waiting = await services.main.read(lambda s: unanswered(s, state.epoch, before))
        chosen, said = choose(waiting, self._said, services.clock.boot(), self._first)
        if chosen:
            # The stream would drop the id that it has seen; the envelope keeps the request's own.
            acks = await services.link.bus.publish_many(
                [(o.subject, o.event, o.envelope, new_message_id()) for o in chosen]
            )
            refused = next((ack for ack in acks if isinstance(ack, BusError)), None)
            LOG.warning("requests_repeated", count=len(chosen), error=str(refused or "")[:200])
        self._said = said
        return len(chosen)


def _any_open(session: Session) -> bool:
    statement = select(col(JobRow.uuid)).where(col(JobRow.answered_n) < col(JobRow.req_n)).limit(1)
    return session.execute(statement).first() is not None
