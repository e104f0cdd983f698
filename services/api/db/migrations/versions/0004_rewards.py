"""Usage of rewards, and alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "reward_source",
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_reward_source"),
    )
    op.create_table(
        "reward_usage",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=128), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("errors", _JSON, nullable=False),
        sa.Column("cache_hits", sa.BigInteger(), nullable=False),
        sa.Column("deduplicated", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=False),
        sa.Column("currency", sa.String(length=8), nullable=False),
        sa.Column("latency", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("day", "job", "provider", "model", name="pk_reward_usage"),
    )
    op.create_index("ix_reward_usage_job", "reward_usage", ["job"])
    op.create_table(
        "alert",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rule", sa.String(length=64), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("job", sa.String(length=64), nullable=True),
        sa.Column("provider", sa.String(length=128), nullable=True),
        sa.Column("message_en", sa.String(length=2000), nullable=False),
        sa.Column("message_zh", sa.String(length=2000), nullable=False),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alert"),
    )
    op.create_index("ix_alert_at", "alert", ["at"])
    op.create_index("ix_alert_published", "alert", ["published"])


def downgrade() -> None:
    for name in ("alert", "reward_usage", "reward_source"):
        op.drop_table(name)
