"""Repository of what operators said of nodes: cordoned or draining, kept over restarts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from rock.domain.nodes import NodeStanding
from rock.store.database import Database, whole
from rock.store.tables import NodeRow
from rock.store.upsert import upsert


@dataclass(frozen=True, slots=True)
class Word:
    standing: NodeStanding
    detail: str
    since: datetime


class NodeStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    @whole
    async def words(self) -> dict[str, Word]:
        query = select(NodeRow.name, NodeRow.standing, NodeRow.detail, NodeRow.since)
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
        return {name: Word(NodeStanding(standing), detail, since) for name, standing, detail, since in rows}

    @whole
    async def save(self, name: str, word: Word) -> None:
        values = {"name": name, "standing": word.standing.value, "detail": word.detail, "since": word.since}
        async with self._db.write() as connection:
            await upsert(connection, NodeRow, [values])

    @whole
    async def remove(self, name: str) -> None:
        async with self._db.write() as connection:
            await connection.execute(delete(NodeRow).where(NodeRow.name == name))
