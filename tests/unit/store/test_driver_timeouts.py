"""A connection that takes too long is the storage's trouble, with a remedy, and not a defect of the platform."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rock.domain.errors import StorageError
from rock.store.database import Database, database_url


def test_a_timeout_of_the_driver_itself_is_a_storage_error(tmp_path: Path) -> None:
    async def hangs() -> None:
        raise TimeoutError  # as asyncpg does while it connects

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        try:
            with pytest.raises(StorageError, match="no database answers"):
                await database.finish(hangs())
        finally:
            await database.close()

    asyncio.run(main())
