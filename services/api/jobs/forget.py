"""What is removed when a job is deleted: everything but the tombstone and its unanswered requests."""

from __future__ import annotations

from sqlalchemy import delete
from sqlmodel import Session, col

from services.api.db.tables import (
    AttemptRow,
    CheckpointRow,
    JobDependencyRow,
    JobEventRow,
    JobRow,
    JobSecretRow,
)


def drop_secrets(session: Session, job: str) -> None:
    """Remove the job's secrets at once."""
    session.execute(delete(JobSecretRow).where(col(JobSecretRow.job) == job))


def drop_history(session: Session, job: str) -> None:
    """Remove the job's history; the row stays, so that its uuid answers `job_deleted` for ever."""
    drop_secrets(session, job)
    for table in (JobEventRow, AttemptRow, CheckpointRow, JobDependencyRow):
        session.execute(delete(table).where(col(table.job) == job))
    row = session.get(JobRow, job)
    if row is not None:
        row.config, row.description, row.tags, row.name = {}, None, [], "deleted"
