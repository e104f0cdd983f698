"""Alembic environment of the api's main database; the caller hands over the connection."""

from __future__ import annotations

from alembic import context

from services.api.db.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=METADATA,
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
