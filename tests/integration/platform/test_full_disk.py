"""A disk that becomes full while the platform runs: requests fail with the reason, nothing that was stored is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rock.wire.models import LeaseView

AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def small_disk(on_fake: Any) -> Iterator[Any]:
    """The stage's home on a file system of 4 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m", "rock-test", str(on_fake.home)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield on_fake
    subprocess.run(["umount", str(on_fake.home)], check=True)


def fill(home: Path) -> Path:
    """Write until nothing fits any more; returns the file to remove."""
    path = home / "junk"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def episode(number: int) -> dict[str, Any]:
    base = {"id": f"ep-{number}", "env": "toy", "task": "t", "seed": number, "ledger": "trained"}
    turns = [{"observation": "o" * 20_000, "response": "r", "action": "a"}]
    return {**base, "outcome": "completed", "reward": 1.0, "turns": turns, "started_at": AT, "ended_at": AT}


def test_the_platform_goes_on_and_nothing_is_lost(small_disk: Any) -> None:
    async def main() -> None:
        async with small_disk.platform() as (_, http):
            lease = LeaseView.model_validate((await http.post("/leases", json={"ttl_s": 600})).json())
            run = (await http.post("/runs", json={"name": "n", "recipe": {}})).json()["id"]
            path = f"/runs/{run}/episodes"
            assert (await http.post(path, json=[episode(1)])).status_code == 204
            junk = fill(small_disk.home)
            refused = await http.post(path, json=[episode(n) for n in range(2, 60)])
            assert refused.status_code == 507
            problem = refused.json()
            assert (problem["type"], problem["fault"]) == ("urn:rock:storage-error", "platform")
            assert "full" in problem["detail"]
            assert "space" in problem["hint"].lower()
            # What needs no disk works on.
            assert (await http.post(f"/leases/{lease.id}/heartbeat")).status_code == 200
            done = await http.post(f"/sandboxes/{lease.sandbox_id}/exec", json={"argv": ["echo", "hi"]})
            assert done.json()["stdout"] == "hi\n"
            assert (await http.get(path)).json()["total"] == 1
            junk.unlink()
            assert (await http.post(path, json=[episode(n) for n in range(2, 10)])).status_code == 204
            assert (await http.get(path)).json()["total"] == 9

            async def well() -> bool:
                return bool((await http.get("/health")).json()["status"] == "ok")

            await small_disk.until(well)
            await http.delete(f"/leases/{lease.id}")
        async with small_disk.platform() as (_, http):
            assert (await http.get(path)).json()["total"] == 9
            assert len((await http.get(f"{path}/ep-1")).json()["turns"][0]["observation"]) == 20_000
            kinds = {event["kind"] for event in (await http.get("/events")).json()}
            assert {"node.up", "run.started"} <= kinds

    asyncio.run(main())


def test_a_sandbox_that_finds_no_room_is_refused_with_the_reason(small_disk: Any) -> None:
    async def main() -> None:
        async with small_disk.platform() as (_, http):
            junk = fill(small_disk.home)
            refused = await http.post("/leases", json={"wait_s": 1})
            assert refused.status_code == 507, refused.text
            assert (await http.get("/leases")).json() == []
            junk.unlink()
            assert (await http.post("/leases", json={"wait_s": 30})).status_code == 201

    asyncio.run(main())
