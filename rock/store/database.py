"""One database: opening it, bringing its schema up to date, and translating what can go wrong with it.

Invariants: one transaction writes at a time in this process (SQLite has one writer; waiting in line here is fairer and
cheaper than its busy loop); a transaction is stored whole or not at all; one that has begun is never cancelled half-way
(:func:`whole`); whatever the driver raises leaves this module as a StorageError that says what to do.

A database in trouble is bounded in what it costs: nobody waits longer than ``PATIENCE_S``, who would have to wait in
line for longer than ``BUSY_TIMEOUT_S`` is refused without having begun, and after a refusal that took long the next
``HOLD_OFF_S`` are refused at once. Nothing is written into a SQLite file that was moved away or deleted under us: what
is written there would be lost.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import orjson
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, delete, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rock.domain.errors import InvalidRequest, StorageError
from rock.store.tables import QuarantineRow

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0
PATIENCE_S = 10.0
HOLD_OFF_S = 1.0
# A refusal that took this long was waited for (a lock, a network), and the next would wait as long.
_LONG_S = 2.0
_MIGRATIONS = Path(__file__).parent / "migrations"

# (part of the driver's message, what happened, what to do)
_KNOWN_TROUBLE: tuple[tuple[str, str, str], ...] = (
    (
        "is full",
        "the disk is full",
        "Free some space there; what was stored before is safe, and reports can be sent again.",
    ),
    ("no space left", "the disk is full", "Free some space there; what was stored before is safe."),
    ("is locked", "another process holds the database", "End the other program that has it open, then try again."),
    ("readonly", "the database is read-only", "Give this user write access to the file and its folder."),
    ("read-only", "the database is read-only", "Give this user write access to the file and its folder."),
    ("unable to open", "the database cannot be opened", "Check that the folder exists and may be written to."),
    ("not a database", "the file is no SQLite database", "Move it away, or name another with --database."),
    ("malformed", "the database is damaged", "Restore it, or move it away and start with a new one."),
    ("disk i/o", "the disk reports an error", "Look at the system's log; what was stored before may be safe."),
    ("password", "the database refuses the login", "Check user and password in the --database URL."),
    ("does not exist", "the database or a part of it does not exist", "Create it first: `createdb NAME`."),
    ("starting up", "the database is starting", "Wait for it; what waits to be stored is kept."),
    ("shutting down", "the database is being stopped", "Start it again; what waits to be stored is kept."),
    ("terminating connection", "the database was stopped", "Start it again; what waits to be stored is kept."),
    ("connection was closed", "the database hung up", "See whether it runs; what waits to be stored is kept."),
    ("connection is closed", "the database hung up", "See whether it runs; what waits to be stored is kept."),
    ("refused", "no database answers at the address", "Start it, or check host and port in the --database URL."),
)


def database_url(text: str, home: Path) -> URL:
    """The URL for the asynchronous driver; empty means SQLite in ``home``. Raises InvalidRequest."""
    if not text:
        return URL.create("sqlite+aiosqlite", database=str(home / "rock.db"))
    if "://" not in text:
        return URL.create("sqlite+aiosqlite", database=str(Path(text).expanduser()))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # a port that is no number
        raise InvalidRequest(
            "the database URL cannot be read", hint="postgresql://user@host/name or a path."
        ) from error
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
    backend = url.drivername.split("+")[0]
    if backend not in drivers:
        raise InvalidRequest(f"unknown kind of database {backend!r}", hint="Use sqlite or postgresql.")
    return url.set(drivername=drivers[backend])


def with_password(text: str, password: str) -> str:
    """The same database, with ``password`` where ``text`` is a URL that has none."""
    if not password or "://" not in text:
        return text
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return text  # whoever opens it says what is wrong
    return text if url.password else url.set(password=password).render_as_string(hide_password=False)


def storage_error(error: BaseException, where: str) -> StorageError:
    original = error.orig if isinstance(error, DBAPIError) else error
    text = " ".join(str(original).split())[:300]
    lowered = text.lower()
    for part, what, remedy in _KNOWN_TROUBLE:
        if part in lowered:
            return StorageError(f"{what} ({where})", hint=remedy, cause=text)
    if isinstance(original, OSError):
        return StorageError(f"no database answers ({where})", hint="Start it, or check the --database URL.", cause=text)
    log.error("the database refused", exc_info=error)
    return StorageError(f"the database refused ({where})", hint="The log has the whole story.", cause=text)


P = ParamSpec("P")
R = TypeVar("R")


class HasDatabase(Protocol):
    _db: Database


S = TypeVar("S", bound=HasDatabase)


def whole(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """For the methods of repositories: once begun it runs to its end, even if whoever waits for it is cancelled, or is
    told after :data:`PATIENCE_S` that the database is too slow.

    Cancelled between two statements, the asynchronous SQLite driver leaves its transaction open for good, and with it
    the database locked (seen: every later write failed).
    """

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._db.finish(method(self, *args, **kwargs))

    return run


def whole_to_the_end(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The same without an end of patience, for what must not be asked for twice."""

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._db.finish(method(self, *args, **kwargs), patience_s=None)

    return run


class Database:
    """Made by :meth:`open`. ``read`` and ``write`` give a connection in a transaction."""

    def __init__(self, engine: AsyncEngine, where: str) -> None:
        self._engine = engine
        self._write_lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._hold_off: tuple[float, StorageError] | None = None
        self._file: tuple[int, int] | None = None
        """Device and number of SQLite's file when it was opened; None where there is none to lose."""
        self.trouble = ""
        """Why nothing could be written last time; empty when it could."""
        self.where = where
        self.kind = "PostgreSQL" if engine.dialect.name == "postgresql" else "SQLite"

    @classmethod
    async def open(cls, url: URL) -> Database:
        """Connect and migrate. Raises StorageError."""
        where = url.database or "in memory" if url.drivername.startswith("sqlite") else url.render_as_string()
        try:
            engine = create_async_engine(url, **_engine_options(url))
        except ModuleNotFoundError as error:
            raise StorageError(
                f"the driver for {url.get_backend_name()} is not installed", hint="pip install 'rock-roll[postgres]'"
            ) from error
        if url.get_backend_name() == "sqlite":
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            await asyncio.to_thread(_check_sqlite, url)
        database = cls(engine, where)
        try:
            async with database.write() as connection:
                await connection.run_sync(_migrate)
            database._file = await asyncio.to_thread(_identity, url)
        except StorageError:
            await engine.dispose()
            raise
        except CommandError as error:
            await engine.dispose()
            raise StorageError(
                f"the database was written by another version of this program ({where})",
                hint="Upgrade the program, or name another database with --database.",
                cause=str(error),
            ) from error
        return database

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise storage_error(error, self.where) from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back whole if anything in it raises."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._take_turn(began)
            try:
                self._refuse_a_lost_file()
                async with self._engine.begin() as connection:
                    yield connection
            finally:
                self._write_lock.release()
        except (SQLAlchemyError, OSError) as error:
            raise self._failed(storage_error(error, self.where), began) from error
        except StorageError as error:
            raise self._failed(error, began) from error.__cause__
        self.trouble = ""
        self._hold_off = None

    async def _take_turn(self, now: float) -> None:
        """The right to write. Raises StorageError."""
        if self._hold_off is not None and now < self._hold_off[0]:
            error = self._hold_off[1]
            raise StorageError(error.message, hint=error.hint, cause=error.cause)
        try:
            async with asyncio.timeout(BUSY_TIMEOUT_S):
                await self._write_lock.acquire()
        except TimeoutError as error:
            raise StorageError(
                f"the database is too slow: nothing could be written within {BUSY_TIMEOUT_S:g} s ({self.where})",
                hint="Look at the disk, or the database's host; nothing of this request was stored.",
            ) from error

    def _failed(self, error: StorageError, began: float) -> StorageError:
        now = asyncio.get_running_loop().time()
        if now - began >= _LONG_S:
            self._hold_off = (now + HOLD_OFF_S, error)
        self.trouble = error.message
        return error

    def _refuse_a_lost_file(self) -> None:
        """Two system calls. Raises StorageError if the file we have open is no longer the one at its place."""
        if self._file is None:
            return
        found = _identity(self._engine.url)
        if found is None:
            raise StorageError(
                f"the database's file has vanished ({self.where})",
                hint="Move it back: the platform goes on from there. What waits to be stored is kept in memory.",
            )
        if found != self._file:
            raise StorageError(
                f"another file lies where the database was ({self.where})",
                hint="Move the right one back, or restart the platform to use this one.",
            )

    async def check(self) -> None:
        """Whether it could be written now. Raises StorageError, and sets or clears :attr:`trouble`."""
        await self.finish(self._check())

    async def _check(self) -> None:
        async with self.write() as connection:
            # Takes the write lock, and the disk's word for it, without changing anything.
            await connection.execute(delete(QuarantineRow).where(QuarantineRow.kind == ""))

    async def finish(self, work: Coroutine[Any, Any, R], patience_s: float | None = PATIENCE_S) -> R:
        """Wait for ``work``; if this is cancelled, or patience ends, ``work`` goes on, and :meth:`close` waits for it.

        Raises StorageError when patience ends: then it may be stored all the same, so what is asked for must bear being
        asked for again.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(task)
        except TimeoutError as error:
            if task.done():  # its own: the driver's, of a connection that took too long
                raise storage_error(error, self.where) from error
            self.trouble = f"the database is too slow: no answer within {patience_s:g} s ({self.where})"
            raise StorageError(self.trouble, hint="Look at the disk, or the database's host.") from error

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # of one that nobody waits for any more, too: it has been told already

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=2 * PATIENCE_S)
        await self._engine.dispose()


def _engine_options(url: URL) -> dict[str, object]:
    json = {"json_serializer": _dump_json, "json_deserializer": orjson.loads}
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}, "pool_timeout": BUSY_TIMEOUT_S, **json}
    waits = {"timeout": BUSY_TIMEOUT_S, "command_timeout": PATIENCE_S}
    return {"pool_pre_ping": True, "pool_size": 5, "pool_timeout": BUSY_TIMEOUT_S, "connect_args": waits, **json}


def _identity(url: URL) -> tuple[int, int] | None:
    """What tells SQLite's file from another at its place; None if there is none."""
    path = url.database if url.get_backend_name() == "sqlite" else None
    if not path or path == ":memory:":
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dump_json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _check_sqlite(url: URL) -> None:
    """Whether the file can be opened and written. With the plain driver, because the asynchronous one leaves a thread
    behind when it cannot connect, which then prints a traceback of its own. Raises StorageError."""
    path = url.database or ":memory:"
    try:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise storage_error(error, path) from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """WAL: readers go on while one writes. NORMAL then keeps the file consistent; power loss costs the last moments."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def migration_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def head_revision() -> str:
    return str(ScriptDirectory.from_config(migration_config()).get_current_head())


def _migrate(connection: Connection) -> None:
    config = migration_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
