"""Leases that go on from a snapshot of their sandbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("image", sa.String(255), nullable=False, server_default=""))
    op.add_column("leases", sa.Column("snapshot", sa.JSON(), nullable=True))


def downgrade() -> None:
    for column in ("snapshot", "image"):
        op.drop_column("leases", column)
