"""When an attempt was fenced, by the broker's clock: what is older than that counts however late it is read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("fenced_at", sa.Float))


def downgrade() -> None:
    op.drop_column("attempt", "fenced_at")
