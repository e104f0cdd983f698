"""Alembic environment: runs on the connection that `shared.db.engine.migrate` hands over."""

from __future__ import annotations

from alembic import context

from services.reward.store.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    version_table="alembic_version",
)
with context.begin_transaction():
    context.run_migrations()
