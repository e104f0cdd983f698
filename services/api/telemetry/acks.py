"""What an agent may forget: the sequence numbers that are stored, on disk, by attempt."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from sqlmodel import Session

from services.api.telemetry.ledger import Ledger
from shared.db import Database
from shared.events.calls import AckQuery, AckReply, AttemptCursor
from shared.events.run import KINDS

QUERY_LIMIT = 2000
"""Attempts answered at once; an agent asks again for the rest."""


def answer(session: Session, host: str, query: AckQuery) -> AckReply:
    """Return what is committed of each attempt, and which attempts are counted but not stored.

    Nothing is said of an attempt nobody knows: its assignment may still be on its way.
    """
    cursors = query.attempts[:QUERY_LIMIT]
    ledger = Ledger(session, {c.job for c in cursors})
    stored: list[AttemptCursor] = []
    refused: list[AttemptCursor] = []
    for cursor in cursors:
        live = ledger.jobs.get(cursor.job)
        row = ledger.attempts.get((cursor.job, cursor.attempt))
        seq = dict(row.seq) if row is not None else dict.fromkeys(KINDS, 0)
        told = AttemptCursor(job=cursor.job, attempt=cursor.attempt, seq={**seq})
        deleted = live is not None and live.deleted > 0
        stale = row is None and live is not None and cursor.attempt < live.latest_attempt
        foreign = row is not None and (row.fenced or row.host != host)
        if row is not None or deleted or stale:
            (refused if deleted or stale or foreign else stored).append(told)
    return AckReply(attempts=tuple(stored), refused=tuple(refused))


def without_answer(query: AckQuery, reply: AckReply) -> list[AttemptCursor]:
    """Return those asked about of which the reply says nothing."""
    told = {(c.job, c.attempt) for c in (*reply.attempts, *reply.refused)}
    return [c for c in query.attempts[:QUERY_LIMIT] if (c.job, c.attempt) not in told]


class DiskBarrier:
    """Waits until everything committed so far is on disk; calls that come together share one fsync.

    SQLite with `synchronous=NORMAL` leaves commits in the write-ahead log without fsync; an agent that is told
    "stored" forgets its copy, so the log is flushed first. PostgreSQL flushes at each commit.
    """

    def __init__(self, database: Database) -> None:
        """Guard one database."""
        url = database.url
        name = url.removeprefix("sqlite:///") if url.startswith("sqlite") else None
        self._log = Path(f"{name}-wal") if name else None
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None

    async def passed(self) -> None:
        """Return once commits made before this call are on disk. Raises OSError when the disk refuses."""
        if self._log is None:
            return
        if self._next is None:
            self._next = asyncio.create_task(self._flush(self._log))
        await asyncio.shield(self._next)

    async def _flush(self, log: Path) -> None:
        async with self._lock:
            # From here on a caller needs the next flush: this one may already have begun.
            self._next = None
            await asyncio.to_thread(_fsync, log)


def _fsync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        # A checkpoint has moved everything into the database file and synced that.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
