"""What outlives the process: SQLAlchemy models, migrations, repositories. SQLite (WAL) by default, PostgreSQL by URL.

Repositories take and return the wire models of ``rock.wire``; nothing above this floor sees a row or a session.
"""
