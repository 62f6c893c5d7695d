"""Attention rhythm of recorded episodes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rhythms",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("episode_id", sa.String(64), primary_key=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
    )
    op.create_index("ix_rhythms_run_id_step", "rhythms", ["run_id", "step"])


def downgrade() -> None:
    op.drop_table("rhythms")
