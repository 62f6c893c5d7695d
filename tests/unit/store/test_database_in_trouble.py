"""A database that is locked, slow or gone: clear errors within bounded time, nothing that was stored is lost."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rock.control import history as history_module
from rock.control.history import History
from rock.domain.errors import StorageError
from rock.store import database as database_module
from rock.store.database import Database, database_url
from rock.store.fleet import FleetStore
from rock.wire.models import EventView

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int) -> EventView:
    return EventView(at=T0, kind="k", subject=str(number))


def hold_the_lock(path: str, pipe: Any) -> None:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    pipe.send("locked")
    pipe.recv()
    connection.execute("ROLLBACK")


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """By another process; waited for in threads: a loop that waits cannot end the transaction that has the lock."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_the_lock, args=(str(path), theirs))
    await asyncio.to_thread(process.start)
    try:
        assert await asyncio.to_thread(ours.recv) == "locked"
        yield
    finally:
        ours.send("go")
        await asyncio.to_thread(process.join)


def test_events_of_a_locked_time_are_stored_once_in_order_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.1)

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        history = History(FleetStore(database), database.check)
        running = asyncio.create_task(history.run())
        history.add_event(event(0))
        await until(lambda: not len(history))
        async with locked(tmp_path / "rock.db"):
            for number in range(1, 20):
                history.add_event(event(number))
            await until(lambda: "holds the database" in history.trouble)
            assert database.trouble
            with pytest.raises(StorageError, match="another process holds"):
                await database.check()
            # Readers are not kept waiting, and see what is stored.
            seen = await history.events(limit=100, kind="", run_id="", after=None)
            assert [e.subject for e in seen] == ["0"]
        await until(lambda: not history.trouble and not len(history))
        assert not database.trouble
        seen = await history.events(limit=100, kind="", run_id="", after=0)
        assert [e.subject for e in seen] == [str(n) for n in range(20)]
        running.cancel()
        await database.close()

    asyncio.run(main())


def test_only_the_oldest_events_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(history_module, "MAX_WAITING", 10)

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        history = History(FleetStore(database))
        async with locked(tmp_path / "rock.db"):
            for number in range(25):
                history.add_event(event(number))
            with pytest.raises(StorageError):
                await history.flush()
        assert history.dropped == 15
        await history.flush()
        seen = await history.events(limit=100, kind="", run_id="", after=0)
        assert [e.subject for e in seen] == [str(n) for n in range(15, 25)]
        await database.close()

    asyncio.run(main())


def test_a_crowd_at_a_locked_database_is_refused_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they would wait 30 × 0.5 s."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(database_module, "_LONG_S", 0.2)

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        store = FleetStore(database)
        async with locked(tmp_path / "rock.db"):
            began = time.monotonic()
            answers = await asyncio.gather(*(store.add_events([event(n)]) for n in range(30)), return_exceptions=True)
            took_s = time.monotonic() - began
            assert all(isinstance(answer, StorageError) for answer in answers)
            assert took_s < 5
            began = time.monotonic()
            with pytest.raises(StorageError, match="holds the database"):
                await store.add_events([event(1)])
            assert time.monotonic() - began < 0.4  # held off: not even tried
        await until_stored(store)
        await database.close()

    asyncio.run(main())


def test_a_slow_database_is_said_to_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.2)

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        store = FleetStore(database)
        async with database.write():  # somebody is still at it
            with pytest.raises(StorageError, match="too slow"):
                await store.add_events([event(1)])
        with pytest.raises(StorageError, match="too slow: no answer within"):
            await database.finish(asyncio.sleep(0.5), patience_s=0.05)
        await database.check()
        assert not database.trouble
        await database.close()

    asyncio.run(main())


def test_nothing_is_written_into_a_file_that_was_moved_away(tmp_path: Path) -> None:
    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        store = FleetStore(database)
        await store.add_events([event(0)])
        path, elsewhere = tmp_path / "rock.db", tmp_path / "elsewhere"
        path.rename(elsewhere)
        with pytest.raises(StorageError, match="vanished") as caught:
            await store.add_events([event(1)])
        assert "Move it back" in caught.value.hint
        path.write_bytes(b"")
        with pytest.raises(StorageError, match="another file"):
            await store.add_events([event(1)])
        path.unlink()
        elsewhere.rename(path)
        await store.add_events([event(1)])
        await database.close()
        again = await Database.open(database_url("", tmp_path))
        assert [e.subject for e in await FleetStore(again).events()] == ["1", "0"]
        await again.close()

    asyncio.run(main())


def test_a_postgresql_that_is_stopped_and_started_again(postgres_cluster: Any, tmp_path: Path) -> None:
    async def main() -> None:
        database = await Database.open(database_url(postgres_cluster.url.render_as_string(), tmp_path))
        history = History(FleetStore(database), database.check)
        running = asyncio.create_task(history.run())
        history.add_event(event(0))
        await until(lambda: not len(history))
        await asyncio.to_thread(postgres_cluster.stop)
        for number in range(1, 5):
            history.add_event(event(number))
        await until(lambda: bool(history.trouble))
        with pytest.raises(StorageError) as caught:
            await database.check()
        assert caught.value.hint
        await asyncio.to_thread(postgres_cluster.start)
        await until(lambda: not history.trouble and not len(history))
        seen = await history.events(limit=100, kind="", run_id="", after=0)
        assert [e.subject for e in seen] == [str(n) for n in range(5)]
        running.cancel()
        await database.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def until_stored(store: FleetStore, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            try:
                await store.add_events([event(99)])
            except StorageError:
                await asyncio.sleep(0.1)
            else:
                return


def test_a_cancellation_that_comes_as_the_work_ends_is_never_lost(tmp_path: Path) -> None:
    """A janitor's loop whose cancellation was swallowed here would run on, and whoever closes it wait for ever."""

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        loop = asyncio.get_running_loop()
        ended: set[str] = set()
        for turns in range(8):  # of the event loop, from the work's end to the cancellation
            result = loop.create_future()

            async def work(result: asyncio.Future[None] = result) -> None:
                await result

            waiting = asyncio.ensure_future(database.finish(work()))
            await asyncio.sleep(0.01)
            result.set_result(None)
            for _ in range(turns):
                await asyncio.sleep(0)
            in_time = waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled() == in_time, turns
            ended.add("cancelled" if in_time else "done")
        assert ended == {"cancelled", "done"}  # both sides of the moment were seen
        await database.close()

    asyncio.run(main())
