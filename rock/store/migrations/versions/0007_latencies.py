"""How long episodes waited for their sandbox and reset, and histograms of latencies kept with every report."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("open_s", "reset_s"):
        op.add_column("episodes", sa.Column(name, sa.Float(), nullable=False, server_default="0"))
    op.create_table(
        "latencies",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("env", sa.String(255), primary_key=True),
        sa.Column("what", sa.String(16), primary_key=True),
        sa.Column("bucket", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("latencies")
    for name in ("open_s", "reset_s"):
        op.drop_column("episodes", name)
