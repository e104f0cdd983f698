"""Indexes from which every job list is read in order."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OLD = {
    "ix_job_created_at_uuid": ["created_at", "uuid"],
    "ix_job_status_created_at": ["status", "created_at"],
    "ix_job_deleted_at_status": ["deleted_at", "status"],
}
_NEW = {
    "ix_job_created_at": ["created_at", "uuid", "deleted_at"],
    "ix_job_status": ["status", "created_at", "uuid", "deleted_at"],
    "ix_job_algorithm": ["algorithm", "created_at", "uuid", "status", "deleted_at"],
    "ix_job_name": ["name", "uuid", "deleted_at"],
    "ix_job_priority": ["priority", "uuid", "deleted_at"],
    "ix_job_started_at": ["started_at", "uuid", "deleted_at"],
    "ix_job_finished_at": ["finished_at", "uuid", "deleted_at"],
}


def upgrade() -> None:
    _exchange(_OLD, _NEW)


def downgrade() -> None:
    _exchange(_NEW, _OLD)


def _exchange(gone: dict[str, list[str]], made: dict[str, list[str]]) -> None:
    for name in gone:
        op.drop_index(name, table_name="job")
    for name, columns in made.items():
        op.create_index(name, "job", columns)
