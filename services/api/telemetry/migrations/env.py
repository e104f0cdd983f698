"""Alembic environment of the telemetry database; the connection comes from `shared.db.engine.migrate`."""

from alembic import context

from services.api.telemetry.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
