"""Messages that could not be stored, with the reason: kept for people, bounded, never retried."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, insert, select
from sqlmodel import Session

from services.api.telemetry import tables
from services.api.telemetry.records import clean
from shared.bus.port import BusMessage

DEAD_LETTER_BYTES = 65_536
DEAD_LETTERS_KEPT = 10_000
Rejected = tuple[BusMessage, str, str]
"""Message, reason, detail."""


def bury(session: Session, rejected: Sequence[Rejected], now: float) -> None:
    """Store rejected messages."""
    if rejected:
        rows = [
            {
                "stream": message.stream,
                "seq": message.seq,
                "subject": clean(message.subject, 300),
                "reason": reason,
                "detail": clean(detail, 500),
                "time": now,
                "data": message.data[:DEAD_LETTER_BYTES],
            }
            for message, reason, detail in rejected
        ]
        session.execute(insert(tables.dead_letter), rows)


def trim(session: Session) -> None:
    """Drop all but the newest DEAD_LETTERS_KEPT."""
    newest = session.execute(select(func.max(tables.dead_letter.c.id))).scalar()
    if newest is not None:
        session.execute(
            delete(tables.dead_letter).where(tables.dead_letter.c.id <= newest - DEAD_LETTERS_KEPT)
        )
