"""Requests, jobs, attempts, checkpoints, hosts, secrets, positions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "attempt",
        sa.Column("job", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_run_seq", sa.Integer(), nullable=False),
        sa.Column("final_seq", _JSON, nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("exited_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("exit", _JSON, nullable=True),
        sa.PrimaryKeyConstraint("job", "attempt", name="pk_attempt"),
    )
    op.create_table(
        "checkpoint",
        sa.Column("job", sa.String(length=36), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=4096), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("manifest_hash", sa.String(length=128), nullable=False),
        sa.Column("metrics", _JSON, nullable=False),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job", "step", name="pk_checkpoint"),
    )
    op.create_table(
        "host",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=253), nullable=False),
        sa.Column("public_key", sa.String(length=128), nullable=True),
        sa.Column("joined_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("req_n", sa.Integer(), nullable=False),
        sa.Column("host_n", sa.BigInteger(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("drained", sa.Boolean(), nullable=False),
        sa.Column("forgotten", sa.Boolean(), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.Column("inventory", _JSON, nullable=True),
        sa.Column("runs", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_host"),
    )
    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.create_index("ix_host_label", ["label"], unique=False)

    op.create_table(
        "job",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.String(length=4000), nullable=True),
        sa.Column("algorithm", sa.String(length=32), nullable=False),
        sa.Column("tags", _JSON, nullable=False),
        sa.Column("config", _JSON, nullable=False),
        sa.Column("depends_on", _JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("req_n", sa.Integer(), nullable=False),
        sa.Column("answered_n", sa.Integer(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("job_n", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", _JSON, nullable=True),
        sa.PrimaryKeyConstraint("uuid", name="pk_job"),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index("ix_job_created_at_uuid", ["created_at", "uuid"], unique=False)
        batch_op.create_index("ix_job_host", ["host"], unique=False)
        batch_op.create_index("ix_job_status_created_at", ["status", "created_at"], unique=False)
        batch_op.create_index("ix_job_deleted_at_status", ["deleted_at", "status"], unique=False)
        batch_op.create_index("uq_job_idempotency_key", ["idempotency_key"], unique=True)

    op.create_table(
        "job_dependency",
        sa.Column("job", sa.String(length=36), nullable=False),
        sa.Column("needs", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("job", "needs", name="pk_job_dependency"),
    )
    with op.batch_alter_table("job_dependency", schema=None) as batch_op:
        batch_op.create_index("ix_job_dependency_needs", ["needs"], unique=False)

    op.create_table(
        "job_event",
        sa.Column("job", sa.String(length=36), nullable=False),
        sa.Column("job_n", sa.Integer(), nullable=False),
        sa.Column("change", sa.String(length=32), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("job", "job_n", name="pk_job_event"),
    )
    op.create_table(
        "job_secret",
        sa.Column("job", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("ciphertext", sa.String(), nullable=False),
        sa.Column("last4", sa.String(length=4), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job", "name", name="pk_job_secret"),
    )
    op.create_table(
        "join_code",
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("host", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("code_hash", name="pk_join_code"),
    )
    op.create_table(
        "projection_position",
        sa.Column("stream", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.String(length=200), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream", name="pk_projection_position"),
    )
    op.create_table(
        "request",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("req_n", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("body", _JSON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("epoch", sa.String(length=200), nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_request"),
    )
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.create_index("ix_request_epoch_position", ["epoch", "position"], unique=False)
        batch_op.create_index("uq_request_key_req_n", ["key", "req_n"], unique=True)


def downgrade() -> None:
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.drop_index("uq_request_key_req_n")
        batch_op.drop_index("ix_request_epoch_position")

    op.drop_table("request")
    op.drop_table("projection_position")
    op.drop_table("join_code")
    op.drop_table("job_secret")
    op.drop_table("job_event")
    with op.batch_alter_table("job_dependency", schema=None) as batch_op:
        batch_op.drop_index("ix_job_dependency_needs")

    op.drop_table("job_dependency")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index("uq_job_idempotency_key")
        batch_op.drop_index("ix_job_deleted_at_status")
        batch_op.drop_index("ix_job_status_created_at")
        batch_op.drop_index("ix_job_host")
        batch_op.drop_index("ix_job_created_at_uuid")

    op.drop_table("job")
    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.drop_index("ix_host_label")

    op.drop_table("host")
    op.drop_table("checkpoint")
    op.drop_table("attempt")
