"""Alembic's entry: migrate over the connection that :mod:`rock.store.database` hands in."""

from __future__ import annotations

from alembic import context

from rock.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
