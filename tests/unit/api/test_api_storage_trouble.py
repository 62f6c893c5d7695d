"""A database that another program holds, under a platform at work: what needs no database goes on, nothing is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rock.store import database as database_module
from rock.wire.guest_client import GuestClient

Make = Callable[..., Any]
AT = "2026-01-01T00:00:00Z"
EPISODE = {"id": "ep-1", "env": "toy", "task": "t", "seed": 1, "ledger": "trained", "outcome": "completed"}
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(home: Path) -> AsyncIterator[None]:
    """In threads: a loop that waits for the lock cannot end the transaction that has it."""
    argv = [sys.executable, "-S", "-c", HOLD, str(home / "rock.db")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - a moment
        assert process.stdout is not None
        try:
            assert await asyncio.to_thread(process.stdout.readline) == "locked\n"
            yield
        finally:
            await asyncio.to_thread(process.communicate, "")


def test_a_locked_database_stops_nothing_but_what_must_be_stored(
    served: Make, short_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.5)

    async def main() -> None:
        async with served() as s:
            kept = await s.post("/leases", {"env": "toy", "ttl_s": 600})
            ended = await s.post("/leases", {"image": "plain", "ttl_s": 600})
            run = (await s.post("/runs", {"name": "n", "recipe": {}}))["id"]
            episodes = [{**EPISODE, "started_at": AT, "ended_at": AT}]
            async with await GuestClient.connect_unix(kept["endpoint"]["socket_path"]) as guest:
                async with locked(short_home):
                    refused = await s.http.post("/leases", json={"image": "plain"})
                    assert (refused.status_code, refused.json()["type"]) == (507, "urn:rock:storage-error")
                    assert "another process holds the database" in refused.json()["detail"]
                    assert refused.headers["retry-after"]
                    assert refused.json()["hint"]
                    late = await s.http.post(f"/runs/{run}/episodes", json=episodes)
                    assert late.status_code == 507
                    # Held leases: the data plane, heartbeats, releases.
                    answer = await guest.call("env.reset", seq=0, task="3", seed=1, options={}, epoch=1)
                    assert answer["info"]
                    assert (await s.http.post(f"/leases/{kept['id']}/heartbeat")).status_code == 200
                    assert (await s.http.delete(f"/leases/{ended['id']}")).status_code == 204
                    assert [lease["id"] for lease in await s.get("/leases")] == [kept["id"]]

                    async def degraded() -> bool:
                        health = await s.get("/health")
                        return health["status"] == "degraded" and "holds the database" in health["detail"]

                    await s.until(degraded)
                    assert "rock_database_up 0.0" in (await s.http.get("http://127.0.0.1/metrics")).text

                async def well() -> bool:
                    return bool((await s.get("/health"))["status"] == "ok")

                await s.until(well, within_s=20)
                await s.post(f"/runs/{run}/episodes", episodes, status=204)
                assert (await s.get(f"/runs/{run}/ledger"))["conserved"] is True
                await s.post("/leases", {"image": "plain"})

                def living() -> list[str]:
                    with sqlite3.connect(short_home / "rock.db") as reader:
                        return [row[0] for row in reader.execute("SELECT id FROM leases WHERE ended_at IS NULL")]

                async def stored() -> bool:
                    return kept["id"] in living() and ended["id"] not in living() and len(living()) == 2

                await s.until(stored)

    asyncio.run(main())
