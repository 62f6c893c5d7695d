"""INSERT … ON CONFLICT for the two databases, which spell it alike but from different modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase


async def upsert(
    connection: AsyncConnection,
    row: type[DeclarativeBase],
    values: Sequence[Mapping[str, Any]],
    *,
    add: Iterable[str] = (),
) -> None:
    """Insert rows, replacing those with the same primary key; columns in ``add`` are added up instead."""
    if not values:
        return
    table = row.__table__
    assert isinstance(table, Table)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    adding = set(add)
    changes = {
        column.key: table.c[column.key] + statement.excluded[column.key]
        if column.key in adding
        else statement.excluded[column.key]
        for column in table.columns
        if not column.primary_key
    }
    statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)
    await connection.execute(statement, [dict(v) for v in values])


def in_chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
