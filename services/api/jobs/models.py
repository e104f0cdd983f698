"""Tables of jobs: what the user asked for, and the copy of what the scheduler decided."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, text
from sqlmodel import Field

from services.api.db.types import JsonType, MainTable, UtcTime

LIST_INDEXES = {
    "ix_job_created_at": ("created_at", "uuid", "deleted_at"),
    "ix_job_status": ("status", "created_at", "uuid", "deleted_at"),
    "ix_job_algorithm": ("algorithm", "created_at", "uuid", "status", "deleted_at"),
    "ix_job_name": ("name", "uuid", "deleted_at"),
    "ix_job_priority": ("priority", "uuid", "deleted_at"),
    "ix_job_started_at": ("started_at", "uuid", "deleted_at"),
    "ix_job_finished_at": ("finished_at", "uuid", "deleted_at"),
}


class JobRow(MainTable, table=True):
    """One job. `config` and `req_n` are the user's (truth); `state` and the columns below it are the scheduler's (copy)."""

    __tablename__ = "job"
    __table_args__ = (
        # Every list leaves deleted jobs out and reads these alone until it knows its page: a row with its
        # configuration is large. `deleted_at` comes last, or SQLite searches by it and sorts everything.
        *(Index(name, *columns) for name, columns in LIST_INDEXES.items()),
        # Nearly always empty; asked for every few seconds.
        Index(
            "ix_job_unanswered",
            "uuid",
            sqlite_where=text("answered_n < req_n"),
            postgresql_where=text("answered_n < req_n"),
        ),
        Index("uq_job_idempotency_key", "idempotency_key", unique=True),
    )

    uuid: str = Field(primary_key=True, max_length=36)
    name: str = Field(max_length=200)
    description: str | None = Field(default=None, max_length=4000)
    algorithm: str = Field(max_length=32)
    tags: list[str] = Field(default_factory=list, sa_type=JsonType)
    config: dict[str, Any] = Field(sa_type=JsonType)
    depends_on: list[str] = Field(default_factory=list, sa_type=JsonType)
    created_at: datetime = Field(sa_type=UtcTime)
    idempotency_key: str | None = Field(default=None, max_length=255)
    body_hash: str = Field(default="", max_length=64)
    req_n: int = 1
    """Number of the user's last request about this job."""
    answered_n: int = 0
    """Number of the last request that the scheduler has answered."""
    deleted_at: datetime | None = Field(default=None, sa_type=UtcTime)
    """Set at once when the user deletes it; the row stays as a tombstone."""

    job_n: int = 0
    """0 until the scheduler has seen it."""
    status: str = Field(default="PENDING", max_length=16)
    reason: str | None = Field(default=None, max_length=32)
    attempt: int = 0
    host: str | None = Field(default=None, max_length=64, index=True)
    priority: int = 50
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcTime)
    state: dict[str, Any] | None = Field(default=None, sa_type=JsonType)
    """The whole JobState of the last event."""


class JobDependencyRow(MainTable, table=True):
    """`job` starts only once `needs` is COMPLETED; also where model_path names `job:<needs>`."""

    __tablename__ = "job_dependency"

    job: str = Field(primary_key=True, max_length=36)
    needs: str = Field(primary_key=True, max_length=36, index=True)


class JobEventRow(MainTable, table=True):
    """One decision of the scheduler, for the job's history."""

    __tablename__ = "job_event"

    job: str = Field(primary_key=True, max_length=36)
    job_n: int = Field(primary_key=True)
    change: str = Field(max_length=32)
    at: datetime = Field(sa_type=UtcTime)
    state: dict[str, Any] = Field(sa_type=JsonType)


class AttemptRow(MainTable, table=True):
    """One attempt: to whom the scheduler gave it, and what that host says of it."""

    __tablename__ = "attempt"

    job: str = Field(primary_key=True, max_length=36)
    attempt: int = Field(primary_key=True)
    host: str = Field(max_length=64)
    assigned_at: datetime = Field(sa_type=UtcTime)
    last_run_seq: int = 0
    """Last run fact stored; a fact beyond the next one is a gap and waits for its resend."""
    final_seq: dict[str, int] | None = Field(default=None, sa_type=JsonType)
    """Last number of every kind, once the attempt has ended properly."""
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    exited_at: datetime | None = Field(default=None, sa_type=UtcTime)
    outcome: str | None = Field(default=None, max_length=16)
    reason: str | None = Field(default=None, max_length=32)
    exit: dict[str, Any] | None = Field(default=None, sa_type=JsonType)
    """The whole `run.exited` or `run.refused` fact."""
