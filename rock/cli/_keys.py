"""The keys that a platform has stored, looked up while it does not run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rock.cli._settings import Settings
from rock.store.database import Database, database_url
from rock.store.keys import KeyStore


def admin_keys(settings: Settings) -> int:
    """How many good keys of scope admin there are. Makes no database where there is none. Raises StorageError."""
    return asyncio.run(_count(settings))


async def _count(settings: Settings) -> int:
    url = database_url(settings.database, settings.home)
    if url.drivername.startswith("sqlite") and not await asyncio.to_thread(Path(url.database or "").is_file):
        return 0
    database = await Database.open(url)
    try:
        keys = [stored.view for stored in await KeyStore(database).keys()]
    finally:
        await database.close()
    return sum(key.scope == "admin" and key.revoked_at is None for key in keys)
