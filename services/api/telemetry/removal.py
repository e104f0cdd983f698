"""Emptying the telemetry of a deleted job, some thousand rows a transaction, so that ingest goes on."""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlmodel import Session

from services.api.telemetry import tables
from shared.db import Database

BATCH_ROWS = 2000
BATCH_CHUNKS = 50
EMPTY = 2
"""`job_live.deleted` once nothing is left; the row stays, so that late telemetry is still refused."""


async def delete_job(database: Database, job: str) -> None:
    """Drop all telemetry of a job. Repeating it is harmless; it may be stopped and begun again at any point."""
    while not await database.write(lambda session: _drop_some(session, job)):
        continue


def jobs_to_empty(session: Session) -> list[str]:
    """Return the deleted jobs that still have rows."""
    c = tables.job_live.c
    return list(session.execute(select(c.job).where(tables.OPEN_WORK, c.deleted == 1)).scalars())


def _drop_some(session: Session, job: str) -> bool:
    """Delete one batch; return whether the job is empty now."""
    live = tables.job_live.c
    job_id = session.execute(select(live.id).where(live.job == job)).scalar()
    if job_id is None:
        return True
    update_live = update(tables.job_live).where(live.id == job_id)
    session.execute(update_live.where(live.deleted == 0).values(deleted=1))
    for table, key, limit in (
        (tables.record, tables.record.c.seq, BATCH_ROWS),
        (tables.metric_line, tables.metric_line.c.seq, BATCH_ROWS),
        (tables.metric_chunk, tables.metric_chunk.c.id, BATCH_CHUNKS),
    ):
        some = select(key).where(table.c.job_id == job_id).limit(limit)
        gone = session.execute(delete(table).where(table.c.job_id == job_id, key.in_(some)))
        if gone.rowcount:  # type: ignore[attr-defined]  # a CursorResult has it
            return False
    session.execute(
        update_live.values(
            deleted=EMPTY, latest="{}", progress=None, state=None, pending=None, tail_lines=0,
            tail_points=0,
        )
    )  # fmt: skip
    return True
