"""Leases that outlive their sandbox; keys; quarantine; what an operator said of a node."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rock.store.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("recovery", sa.String(16), nullable=False, server_default="none"))
    op.add_column("leases", sa.Column("recoveries", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("leases", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("leases", sa.Column("needs_s", sa.Float(), nullable=False, server_default="0"))
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("max_leases", sa.Integer(), nullable=False),
        sa.Column("max_requests", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("last_used_at", UtcDateTime(), nullable=True),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
    )
    op.create_index("ix_keys_secret_sha256", "keys", ["secret_sha256"], unique=True)
    op.create_table(
        "quarantine",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("node", sa.String(255), nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("standing", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
    )


def downgrade() -> None:
    for table in ("nodes", "quarantine", "keys"):
        op.drop_table(table)
    for column in ("needs_s", "key_id", "recoveries", "recovery"):
        op.drop_column("leases", column)
