"""Sandboxes' last views, leases and events, on both databases; and how the database can fail."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from rock.domain.errors import InvalidRequest, StorageError
from rock.domain.sandbox import SandboxState
from rock.store import database as database_module
from rock.store import fleet
from rock.store.database import Database, database_url
from rock.store.fleet import FleetStore, StoredLease
from rock.store.runs import RunStore
from rock.store.tables import Base
from rock.wire.models import EventView, Evidence, RunView, SandboxSpec, SandboxView

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = SandboxSpec(image="i")


def view(number: int, state: SandboxState = SandboxState.GONE, **changes: Any) -> SandboxView:
    at = T0 + timedelta(seconds=number)
    base: dict[str, Any] = {"node": "n", "runtime": "fake", "spec": SPEC, "created_at": at, "changed_at": at}
    return SandboxView(id=f"sb-{number}", state=state, **{**base, **changes})


def lease(number: int) -> StoredLease:
    return StoredLease(f"ls-{number}", f"sb-{number}", "n", 1, "0" * 64, 60.0, "run", "", SPEC, {"a": "b"}, T0)


def test_the_schema_of_the_migrations_is_that_of_the_tables(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database, database.read() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
            )
            assert differences == []

    asyncio.run(main())


def test_failures_are_found_with_their_evidence_after_the_sandbox_is_gone(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            evidence = Evidence(cause="oom", exit_code=137, oom_killed=True, last_output=("a", "b"))
            await store.save_sandboxes([view(1, SandboxState.READY), view(2), view(3, run_id="r")])
            await store.save_sandboxes([view(1, evidence=evidence)])
            assert await store.sandbox("sb-1") == view(1, evidence=evidence)
            assert await store.sandbox("sb-9") is None
            assert [v.id for v in await store.past_sandboxes(state=SandboxState.FAILED)] == ["sb-1"]
            assert [v.id for v in await store.past_sandboxes(state=SandboxState.GONE)] == ["sb-3", "sb-2", "sb-1"]
            assert [v.id for v in await store.past_sandboxes(state=SandboxState.GONE, run_id="r")] == ["sb-3"]

    asyncio.run(main())


def test_what_a_killed_process_left_as_living_is_closed(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            await store.save_sandboxes([view(1, SandboxState.LEASED), view(2, SandboxState.READY)])
            await store.close_unfinished_sandboxes(["sb-1"], T0)
            states = [(await store.sandbox(f"sb-{n}")).state for n in (1, 2)]  # type: ignore[union-attr]
            assert states == [SandboxState.LEASED, SandboxState.GONE]

    asyncio.run(main())


def test_leases_live_until_they_are_ended(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            for number in range(3):
                await store.add_lease(lease(number))
            await store.end_leases({"ls-1": "released", "ls-unknown": "x"}, T0)
        async with opened() as database:
            assert await FleetStore(database).living_leases() == [lease(0), lease(2)]

    asyncio.run(main())


def test_events_are_listed_newest_first_or_followed(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            await store.add_events([EventView(at=T0, kind=f"k{n % 2}", subject=f"s{n}", run_id="r") for n in range(6)])
            newest = await store.events(limit=2)
            assert [e.subject for e in newest] == ["s5", "s4"]
            assert [e.subject for e in await store.events(kinds=["k0"])] == ["s4", "s2", "s0"]
            assert [e.subject for e in await store.events(after=newest[-1].id - 2)] == ["s3", "s4", "s5"]
            assert await store.events(run_id="other") == []
            monkeypatch.setattr(fleet, "KEEP_EVENTS", 3)
            monkeypatch.setattr(fleet, "KEEP_SANDBOXES", 1)
            monkeypatch.setattr(fleet, "KEEP_LEASES", 0)
            await store.save_sandboxes([view(n) for n in range(4)])
            await store.add_lease(lease(1))
            await store.end_leases({"ls-1": "x"}, T0)
            await store.trim()
            assert [e.subject for e in await store.events()] == ["s5", "s4", "s3"]
            assert [v.id for v in await store.past_sandboxes()] == ["sb-3"]

    asyncio.run(main())


# --- trouble


def test_a_locked_database_is_said_to_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.05)

    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        other = sqlite3.connect(tmp_path / "rock.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="another process holds the database") as caught:
            await FleetStore(database).save_sandboxes([view(1)])
        assert caught.value.hint
        other.execute("ROLLBACK")
        other.close()
        await FleetStore(database).save_sandboxes([view(1)])
        await database.close()

    asyncio.run(main())


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        store = RunStore(database)
        await store.create(
            RunView(id="r", name="n", status="starting", recipe={}, total_steps=1, created_at=T0, updated_at=T0)
        )
        async with database.write() as connection:  # SQLite's own "the disk is full", at a size of our choosing
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
        big = [view(n, evidence=Evidence(cause="x", detail="y" * 5000)) for n in range(100)]
        with pytest.raises(StorageError, match="the disk is full") as caught:
            await FleetStore(database).save_sandboxes(big)
        assert "Free some space" in caught.value.hint
        assert (await store.run("r")).id == "r"
        async with database.write() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        await FleetStore(database).save_sandboxes(big)
        assert len(await FleetStore(database).past_sandboxes()) == 100
        await database.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda home: (home / "rock.db").mkdir(), "cannot be opened"),
        (lambda home: (home / "rock.db").write_bytes(b"this is no database at all" * 100), "no SQLite database"),
    ],
    ids=["a directory", "not a database"],
)
def test_what_cannot_be_opened_is_said_plainly(tmp_path: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path)

    async def main() -> None:
        with pytest.raises(StorageError, match=message):
            await Database.open(database_url("", tmp_path))

    asyncio.run(main())


def test_a_read_only_database_is_said_to_be_read_only(tmp_path: Path) -> None:
    async def main() -> None:
        database = await Database.open(database_url("", tmp_path))
        async with database.read() as connection:  # SQLite's own way, as root may write to read-only files
            await connection.exec_driver_sql("PRAGMA query_only=ON")
        with pytest.raises(StorageError, match="the database is read-only") as caught:
            await FleetStore(database).save_sandboxes([view(1)])
        assert "write access" in caught.value.hint
        await database.close()

    asyncio.run(main())


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        await (await Database.open(database_url("", tmp_path))).close()
        other = sqlite3.connect(tmp_path / "rock.db")
        other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.commit()
        other.close()
        with pytest.raises(StorageError, match="another version"):
            await Database.open(database_url("", tmp_path))

    asyncio.run(main())


def test_nobody_at_the_address_is_said_plainly_and_no_password_shown(tmp_path: Path) -> None:
    async def main() -> None:
        url = database_url("postgresql://me:hunter2@127.0.0.1:1/x", tmp_path)
        with pytest.raises(StorageError, match="no database answers") as caught:
            await Database.open(url)
        assert "hunter2" not in f"{caught.value} {caught.value.cause}"

    asyncio.run(main())


@pytest.mark.parametrize("text", ["mysql://x/y", "://"])
def test_an_unknown_kind_of_database_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        database_url(text, tmp_path)


def test_writers_of_one_process_wait_in_line(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            await asyncio.gather(
                *(store.save_sandboxes([view(n)]) for n in range(40)), *(store.events() for _ in range(40))
            )
            assert len(await store.past_sandboxes()) == 40

    asyncio.run(main())


def test_a_writer_that_gives_up_leaves_no_lock_behind(opened: Callable[..., Any]) -> None:
    async def main() -> None:
        async with opened() as database:
            store = FleetStore(database)
            events = [EventView(at=T0, kind="k", subject="s")] * 50
            for attempt in range(40):
                write = asyncio.create_task(store.add_events(events))
                await asyncio.sleep(attempt * 0.0002)
                write.cancel()
                await asyncio.gather(write, return_exceptions=True)
                await asyncio.wait_for(store.add_events(events[:1]), 3)
        async with opened() as database:
            stored = len(await FleetStore(database).events(limit=10_000))
            assert stored % 50 == 40, "every transaction is stored whole or not at all"

    asyncio.run(main())
