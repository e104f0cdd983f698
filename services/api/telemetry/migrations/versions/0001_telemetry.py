"""First telemetry schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "projector",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("frame_base", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "projection_position",
        sa.Column("stream", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.String(200), nullable=True),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "job_live",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job", sa.Text, nullable=False, unique=True),
        sa.Column("frame_seq", sa.BigInteger, nullable=False),
        sa.Column("job_n", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text),
        sa.Column("pending", sa.Text),
        sa.Column("ended_seq", sa.BigInteger),
        sa.Column("deleted", sa.Integer, nullable=False),
        sa.Column("latest", sa.Text, nullable=False),
        sa.Column("latest_step", sa.Float),
        sa.Column("latest_attempt", sa.Integer, nullable=False),
        sa.Column("progress", sa.Text),
        sa.Column("capped", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("tail_lines", sa.Integer, nullable=False),
        sa.Column("tail_points", sa.Integer, nullable=False),
    )
    op.create_index(
        "ix_job_live_open",
        "job_live",
        ["id"],
        sqlite_where=sa.text("pending IS NOT NULL OR deleted = 1"),
        postgresql_where=sa.text("pending IS NOT NULL OR deleted = 1"),
    )
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("host", sa.Text),
        sa.Column("fenced", sa.Boolean, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        *(
            sa.Column(f"{kind}_seq", sa.BigInteger, nullable=False)
            for kind in ("run", "met", "log", "smp", "sys")
        ),
    )
    op.create_table(
        "record",
        sa.Column("job_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("step", sa.Float),
        sa.Column("level", sa.Integer),
        sa.Column("value", sa.Float),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("body", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_record_type", "record", ["job_id", "type", "seq"])
    op.create_table(
        "metric_line",
        sa.Column("job_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.Float, nullable=False),
        sa.Column("epoch", sa.Float),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metric_chunk",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("points", sa.Integer, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("step_min", sa.Float, nullable=False),
        sa.Column("step_max", sa.Float, nullable=False),
        sa.Column("value_min", sa.Float),
        sa.Column("value_max", sa.Float),
        sa.Column("value_first", sa.Float),
        sa.Column("value_last", sa.Float),
        sa.Column("step", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("seq", sa.LargeBinary, nullable=False),
        sa.Column("epoch", sa.LargeBinary, nullable=False),
        sa.Column("time", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_chunk_series", "metric_chunk", ["job_id", "name", "first_seq"])
    op.create_index("ix_chunk_frames", "metric_chunk", ["job_id", "last_seq"])
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for name in (
        "dead_letter",
        "metric_chunk",
        "metric_line",
        "record",
        "attempt",
        "job_live",
        "projection_position",
        "projector",
    ):
        op.drop_table(name)
