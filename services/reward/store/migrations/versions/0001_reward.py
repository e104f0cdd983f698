"""make the tables

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "providers",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=True),
        sa.Column("ciphertext", sa.Text(), nullable=True),
        sa.Column("last4", sa.String(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    op.create_table(
        "rewards",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_rewards_name", "rewards", ["name"])
    op.create_table(
        "purses",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("spent", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_purses_updated_at", "purses", ["updated_at"])
    op.create_table(
        "verdicts",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_verdicts_expires_at", "verdicts", ["expires_at"])
    op.create_table(
        "ledger",
        sa.Column("source", sa.String(), primary_key=True),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "words",
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("epoch", sa.String(), nullable=True),
        sa.Column("at", sa.Float(), nullable=False),
    )
    op.create_index("ix_words_epoch", "words", ["epoch"])
    op.create_index("ix_words_at", "words", ["at"])
    op.create_table(
        "usage",
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("sums", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("day", "job", "provider", "model"),
    )


def downgrade() -> None:
    for name in ("usage", "words", "ledger", "verdicts", "purses", "rewards", "providers"):
        op.drop_table(name)
