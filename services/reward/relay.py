"""Numbered words leave the database for the stream REWARD, in order, and again whenever the stream was made anew."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import delete, or_, select, update
from sqlmodel import Session, col

from services.reward.store.tables import WordRow
from shared.bus import Bus
from shared.bus.credentials import bus_config
from shared.bus.port import BusError
from shared.clock import Clock
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.events import Envelope
from shared.events.base import EventBase
from shared.events.reward import RewardEvent
from shared.log import logger
from shared.settings import Settings

LOG = logger("reward.relay")
STREAM: Final = "REWARD"
CONNECT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 15.0
"""How often the stream's life is looked at while nothing happens."""
BATCH: Final = 256
KEEP_SECONDS: Final = 7 * 24 * 3600.0
_EVENT: TypeAdapter[EventBase] = TypeAdapter(RewardEvent)


class Relay:
    """`run` for the life of the service; it waits for the broker by itself. Scoring needs no broker."""

    def __init__(self, settings: Settings, database: Database, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._clock = clock
        self._new = asyncio.Event()

    def wake(self) -> None:
        """Say that there are new words."""
        self._new.set()

    async def run(self) -> None:
        """Publish what the stream does not have."""
        bus = await self._connected()
        try:
            await self._follow(bus)
        finally:
            with contextlib.suppress(BusError):
                await bus.close()

    async def _connected(self) -> Bus:
        """Return the bus; tries for ever, since nothing here needs it but this."""
        while True:
            try:
                config = bus_config(self._settings, "reward")
                return await Bus.connect(config, timeout=CONNECT_SECONDS)
            except (BusError, OSError) as error:
                LOG.info("waits_for_broker", error=str(error)[:200])
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, bus: Bus) -> None:
        while True:
            self._new.clear()
            try:
                while await self._publish(bus):
                    pass
            except (BusError, DatabaseBusy, DatabaseFull, TimeoutError) as error:
                LOG.info("words_wait", error=str(error)[:200])
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._new.wait()

    async def _publish(self, bus: Bus) -> bool:
        """Publish one batch; False when there was nothing."""
        epoch = (await bus.stream_state(STREAM)).epoch
        rows = await self._database.read(lambda session: _next(session, epoch))
        if not rows:
            return False
        now = self._clock.now()
        items = [
            (
                r.subject,
                _EVENT.validate_json(r.body),
                Envelope(r.id, "/trainyard/reward", now),
                r.id,
            )
            for r in rows
        ]
        results = await bus.publish_many(items)
        done = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, BusError):
                break  # what is behind it must not overtake it for good: it is said again
            done.append(row.seq)
        before = now.timestamp() - KEEP_SECONDS
        await self._database.write(lambda session: _mark(session, done, epoch, before))
        if len(done) < len(rows):
            raise TimeoutError("the broker did not take all words")
        return True


def _next(session: Session, epoch: str) -> list[WordRow]:
    unsent = or_(col(WordRow.epoch).is_(None), col(WordRow.epoch) != epoch)
    statement = select(WordRow).where(unsent).order_by(col(WordRow.seq)).limit(BATCH)
    return list(session.execute(statement).scalars())


def _mark(session: Session, done: list[int], epoch: str, before: float) -> None:
    session.execute(update(WordRow).where(col(WordRow.seq).in_(done)).values(epoch=epoch))
    old = col(WordRow.at) < before
    session.execute(delete(WordRow).where(old, col(WordRow.epoch) == epoch))
