"""An index for the successful and the failed episodes of a run."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_episodes_run_id_success_ended_at_id", "episodes", ["run_id", "success", "ended_at", "id"], unique=False
    )


def downgrade() -> None:
    op.drop_index("ix_episodes_run_id_success_ended_at_id", table_name="episodes")
