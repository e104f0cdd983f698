"""An index of the jobs with a request that the scheduler has not answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WHERE = sa.text("answered_n < req_n")


def upgrade() -> None:
    op.create_index(
        "ix_job_unanswered", "job", ["uuid"], sqlite_where=_WHERE, postgresql_where=_WHERE
    )


def downgrade() -> None:
    op.drop_index("ix_job_unanswered", table_name="job")
