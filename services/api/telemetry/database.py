"""The telemetry database's schema, and what its counters start from."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert, select, update
from sqlmodel import Session

from services.api.telemetry import tables
from shared.db import Database
from shared.db.engine import migrate

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate_telemetry(database: Database) -> None:
    """Bring the telemetry database to the newest schema."""
    migrate(database, MIGRATIONS)


class Superseded(RuntimeError):
    """A newer projector has taken over this database; this one must stop."""


def take_over(session: Session, frame_base: int) -> int:
    """Become the only projector of this database and return the token that proves it.

    `frame_base` is where the frame counters start if the database is new: above everything handed out before,
    where an older one was lost.
    """
    row = session.execute(select(tables.projector.c.token)).one_or_none()
    if row is None:
        session.execute(insert(tables.projector).values(id=1, token=1, frame_base=frame_base))
        return 1
    session.execute(update(tables.projector).values(token=tables.projector.c.token + 1))
    return int(session.execute(select(tables.projector.c.token)).scalar_one())


def hold(session: Session, token: int) -> int:
    """Lock out every other projector for this transaction and return the frame base.

    Raises Superseded when a newer one has taken over.
    """
    held = session.execute(
        update(tables.projector).where(tables.projector.c.token == token).values(token=token)
    )
    if held.rowcount != 1:  # type: ignore[attr-defined]  # a CursorResult has it
        raise Superseded
    return int(session.execute(select(tables.projector.c.frame_base)).scalar_one())
