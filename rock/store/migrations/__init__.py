"""Alembic's migrations; run by :meth:`rock.store.database.Database.open`, never by hand."""
