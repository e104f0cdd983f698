"""Marks restored databases, so that each service catches up at its next start; SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from shared.restored import PENDING, RESTORED, frame_base

SCHEMAS = {
    "scheduler.db": "scheduler",
    "api/main.db": "api",
    "api/telemetry.db": "telemetry",
    "reward/reward.db": "reward",
}
"""Member of a backup → schema of the same tables on PostgreSQL."""
_GAP = {
    "reason": "restored",
    "message": "The databases were restored from a backup: what follows may repeat what was shown before.",
}


class MarkRefused(RuntimeError):
    """A database cannot be marked; the sentence names it."""


def new_id() -> str:
    """Return the id of one restore."""
    return uuid.uuid4().hex


def mark(urls: Mapping[str, str], restore: str, unix_seconds: float) -> None:
    """Mark databases (member → SQLAlchemy URL) as restored. Raises MarkRefused: it may be repeated."""
    for name, url in urls.items():
        schema = SCHEMAS[name] if url.startswith("postgresql") else None
        options = {"options": f"-c search_path={schema}"} if schema else {}
        engine = create_engine(url, connect_args=options)
        try:
            with engine.begin() as connection:
                _MARKS[name](connection, restore, unix_seconds)
        except SQLAlchemyError as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            raise MarkRefused(f"{name} cannot be marked as restored: {reason}.") from error
        finally:
            engine.dispose()


def _mark_position(connection: Connection, table: str, column: str, restore: str) -> None:
    connection.execute(text(f"DELETE FROM {table} WHERE {column} = :name"), {"name": RESTORED})  # noqa: S608 - our own names
    connection.execute(
        text(f"INSERT INTO {table} ({column}, epoch, last_seq) VALUES (:name, :id, :n)"),  # noqa: S608
        {"name": RESTORED, "id": restore, "n": PENDING},
    )


def _scheduler(connection: Connection, restore: str, _: float) -> None:
    _mark_position(connection, "positions", "name", restore)


def _main(connection: Connection, restore: str, _: float) -> None:
    _mark_position(connection, "projection_position", "stream", restore)


def _telemetry(connection: Connection, _: str, unix_seconds: float) -> None:
    """Let frame numbers go on above all that were handed out, with a gap that says why, where a job is not over."""
    base = {"base": frame_base(unix_seconds)}
    connection.execute(
        text("UPDATE projector SET frame_base = :base WHERE frame_base < :base"), base
    )
    connection.execute(
        text("UPDATE job_live SET frame_seq = :base WHERE frame_seq < :base AND deleted = 0"), base
    )
    connection.execute(
        text(
            "INSERT INTO record (job_id, seq, type, time, body) SELECT id, frame_seq, 'gap', :time, :body "
            "FROM job_live WHERE frame_seq = :base AND deleted = 0 AND ended_seq IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM record r WHERE r.job_id = job_live.id AND r.seq = :base)"
        ),
        base | {"time": unix_seconds, "body": json.dumps(_GAP)},
    )


def _reward(connection: Connection, restore: str, _: float) -> None:
    """Let the ledger speak under another name: its numbers go back, and under the old name they were counted."""
    if inspect(connection).has_table("ledger"):
        connection.execute(text("UPDATE ledger SET source = :id"), {"id": restore})


_MARKS = {
    "scheduler.db": _scheduler,
    "api/main.db": _main,
    "api/telemetry.db": _telemetry,
    "reward/reward.db": _reward,
}
