"""Verdicts that were paid for: in memory for speed, in the database for the next process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import orjson
from sqlalchemy import delete, select
from sqlmodel import Session, col

from services.reward.store.tables import VerdictRow
from shared.db import Database, DatabaseBusy, DatabaseFull
from shared.log import logger

LOG = logger("reward.cache")
KEEP_SECONDS: Final = 7 * 24 * 3600.0
IN_MEMORY: Final = 200_000
IN_DATABASE: Final = 5_000_000
"""Rows of about 300 bytes: below 2 GB."""
FLUSH_SECONDS: Final = 0.25
PENDING_AT_MOST: Final = 20_000


class VerdictCache:
    """`get` and `put` by key. Losing an entry costs a call and nothing else, so writes are batched. `now`: wall clock."""

    def __init__(self, database: Database | None, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now
        self._memory: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._pending: dict[str, dict[str, Any]] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._flushes = 0

    def peek(self, key: str) -> dict[str, Any] | None:
        """Return what is in memory."""
        found = self._memory.get(key)
        if found is not None:
            self._memory.move_to_end(key)
        return found

    async def get(self, key: str) -> dict[str, Any] | None:
        """Return what was put, or None."""
        found = self.peek(key)
        if found is not None:
            return found
        if self._database is None:
            return None
        row = await self._database.read(lambda session: session.get(VerdictRow, key))
        if row is None or row.expires_at < self._now():
            return None
        value: dict[str, Any] = orjson.loads(row.value)
        self._remember(key, value)
        return value

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep a verdict."""
        self._remember(key, value)
        if self._database is None or len(self._pending) >= PENDING_AT_MOST:
            return
        self._pending[key] = value
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush_soon(), name="cache-flush")

    async def close(self) -> None:
        """Write what waits."""
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        await self._flush()

    def _remember(self, key: str, value: dict[str, Any]) -> None:
        self._memory[key] = value
        while len(self._memory) > IN_MEMORY:
            self._memory.popitem(last=False)

    async def _flush_soon(self) -> None:
        await asyncio.sleep(FLUSH_SECONDS)  # gathers one batch
        await self._flush()

    async def _flush(self) -> None:
        if self._database is None or not self._pending:
            return
        batch, self._pending = self._pending, {}
        until = self._now() + KEEP_SECONDS
        trim = self._flushes % 200 == 0
        self._flushes += 1
        now = self._now()

        def work(session: Session) -> None:
            for key, value in batch.items():
                session.merge(
                    VerdictRow(key=key, value=orjson.dumps(value).decode(), expires_at=until)
                )
            if trim:
                session.execute(delete(VerdictRow).where(col(VerdictRow.expires_at) < now))
                _trim(session)

        try:
            await self._database.write(work)
        except (DatabaseBusy, DatabaseFull) as error:
            LOG.warning("verdicts_not_kept", count=len(batch), error=type(error).__name__)


def _trim(session: Session) -> None:
    """Remove the oldest beyond the limit."""
    oldest = session.execute(
        select(col(VerdictRow.expires_at))
        .order_by(col(VerdictRow.expires_at).desc())
        .offset(IN_DATABASE)
        .limit(1)
    ).scalar()
    if oldest is not None:
        session.execute(delete(VerdictRow).where(col(VerdictRow.expires_at) <= oldest))
