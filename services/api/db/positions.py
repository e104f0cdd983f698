"""How far a projection has read each stream, stored in the transaction that stores what was read."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, MetaData, String, Table, delete, insert, select, update
from sqlmodel import Session

TABLE = "projection_position"


@dataclass(frozen=True, slots=True)
class Position:
    """The last message applied; `epoch` names the life of the stream that `last_seq` counts in."""

    epoch: str | None
    last_seq: int


START = Position(None, 0)


def projection_position_table(metadata: MetaData) -> Table:
    """Declare the table in a database's metadata; main and telemetry each have one."""
    return Table(
        TABLE,
        metadata,
        Column("stream", String(64), primary_key=True),
        Column("epoch", String(200), nullable=True),
        Column("last_seq", BigInteger, nullable=False),
    )


# Statements are written against a free-standing copy, so that they serve both databases.
_T = projection_position_table(MetaData())


def load_position(session: Session, stream: str) -> Position:
    """Return where to go on; START when the stream was never read."""
    row = (
        session.connection()
        .execute(select(_T.c.epoch, _T.c.last_seq).where(_T.c.stream == stream))
        .one_or_none()
    )
    return Position(row.epoch, row.last_seq) if row else START


def save_position(session: Session, stream: str, epoch: str, last_seq: int) -> None:
    """Store where the stream has been read to, in the caller's transaction."""
    connection = session.connection()
    values = {"epoch": epoch, "last_seq": last_seq}
    changed = connection.execute(update(_T).where(_T.c.stream == stream).values(**values))
    if changed.rowcount == 0:
        connection.execute(insert(_T).values(stream=stream, **values))


def forget_positions(session: Session) -> None:
    """Drop every position: the next read starts at the beginning (rebuild)."""
    session.connection().execute(delete(_T))
