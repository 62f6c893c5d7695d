"""Repository of API keys. The secret never comes here: what is stored, and looked up by, is its SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update

from rock.domain.errors import NotFound
from rock.store.database import Database, whole
from rock.store.tables import KeyRow
from rock.wire.models import KeyView


@dataclass(frozen=True, slots=True)
class StoredKey:
    view: KeyView
    secret_sha256: str


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    @whole
    async def add(self, key: StoredKey) -> None:
        values = key.view.model_dump(exclude={"secret"}) | {"secret_sha256": key.secret_sha256}
        async with self._db.write() as connection:
            await connection.execute(insert(KeyRow).values(values))

    @whole
    async def keys(self) -> list[StoredKey]:
        """All of them, the oldest first; those that were revoked too."""
        async with self._db.read() as connection:
            query = select(KeyRow.__table__).order_by(KeyRow.created_at, KeyRow.id)
            rows = [dict(row._mapping) for row in (await connection.execute(query)).all()]
        return [StoredKey(secret_sha256=row.pop("secret_sha256"), view=KeyView(**row)) for row in rows]

    @whole
    async def revoke(self, key_id: str, at: datetime) -> None:
        """The first revocation stays."""
        async with self._db.write() as connection:
            query = update(KeyRow).where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None)).values(revoked_at=at)
            found = await connection.execute(query)
            if not found.rowcount and await connection.scalar(select(KeyRow.id).where(KeyRow.id == key_id)) is None:
                raise NotFound(f"no key {key_id!r}", hint="`rock key list` shows them.")

    @whole
    async def used(self, when: Mapping[str, datetime]) -> None:
        """Write down when keys were used last."""
        async with self._db.write() as connection:
            for key_id, at in when.items():
                await connection.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=at))
