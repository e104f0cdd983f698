"""A stream's position moves from exactly where it was, in the transaction of the rows, or nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import MetaData, insert, update
from sqlmodel import Session

from services.api.db.positions import START, Position, load_position, projection_position_table
from services.api.projections.main import Item

# Free-standing, so that it serves both databases.
_T = projection_position_table(MetaData())


class PositionMoved(RuntimeError):
    """Another projector stored this stream's messages first."""


def fresh_items(applied: Position, items: Sequence[Item]) -> list[Item]:
    """Return the messages beyond `applied`; those of another epoch all are."""
    return [
        item for item in items if item[0].epoch != applied.epoch or item[0].seq > applied.last_seq
    ]


def advance(session: Session, stream: str, epoch: str, last_seq: int) -> Position | None:
    """Move the position to (`epoch`, `last_seq`) and return where it was; None when it is there already.

    Raises PositionMoved when another transaction moved it in the meantime (PostgreSQL).
    """
    applied = load_position(session, stream)
    if applied.epoch == epoch and applied.last_seq >= last_seq:
        return None
    values: dict[str, Any] = {"epoch": epoch, "last_seq": last_seq}
    if applied == START:
        session.execute(insert(_T).values(stream=stream, **values))
        return applied
    moved = session.execute(
        update(_T)
        .where(
            _T.c.stream == stream,
            _T.c.epoch == applied.epoch,
            _T.c.last_seq == applied.last_seq,
        )
        .values(**values)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]  # a CursorResult has it
        raise PositionMoved(stream)
    return applied


def restart(session: Session, stream: str, epoch: str, last_seq: int = 0) -> None:
    """Go back to the beginning of a stream that was made anew, or to `last_seq`; applying again changes nothing."""
    applied = load_position(session, stream)
    values: dict[str, Any] = {"epoch": epoch, "last_seq": last_seq}
    if applied == START:
        session.execute(insert(_T).values(stream=stream, **values))
    else:
        session.execute(update(_T).where(_T.c.stream == stream).values(**values))
