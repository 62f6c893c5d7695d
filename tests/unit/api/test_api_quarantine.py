"""The quarantine over the API: tasks that are reported, what survives a restart, and clearing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.control import quarantine
from rock.wire.models import SandboxSpec

Make = Callable[..., Any]
FAILURE = {"env": "toy", "task": "games/7", "reason": "the game file is empty"}


def test_a_task_that_fails_three_times_is_in_quarantine_over_a_restart_until_somebody_clears_it(
    served: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "REPORT_SLACK_S", 0.0)

    async def main() -> None:
        async with served() as s:
            assert [await s.post("/quarantine/tasks", FAILURE, status=200) for _ in range(2)] == [None, None]
            view = await s.post("/quarantine/tasks", FAILURE, status=200)
            assert (view["subject"], view["kind"], view["failures"]) == ("toy/games/7", "task", 3)
            assert view["reason"] == "the game file is empty"
            await s.platform.control.quarantine.reconcile()
        async with served() as s:
            [view] = await s.get("/quarantine")
            assert (view["subject"], view["name"]) == ("toy/games/7", "task 'games/7' of environment 'toy'")
            assert (await s.http.delete("/quarantine/toy/games/7")).status_code == 204
            assert await s.get("/quarantine") == []
            gone = await s.http.delete("/quarantine/toy/games/7")
            assert gone.status_code == 404
            assert "rock quarantine list" in gone.json()["hint"]
            kinds = [event["kind"] for event in await s.get("/events", limit=100)]
            assert kinds.count("quarantine.added") == kinds.count("quarantine.cleared") == 1

    asyncio.run(main())


def test_failures_of_one_group_side_by_side_are_one(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            for _ in range(16):
                assert await s.post("/quarantine/tasks", FAILURE | {"elapsed_s": 30}, status=200) is None

    asyncio.run(main())


def test_an_image_in_quarantine_is_refused_over_the_api_with_what_to_do(served: Make) -> None:
    bad = SandboxSpec(image="bad")

    async def main() -> None:
        async with served(pools={"toy": 1}) as s:
            s.runtime.faults.dies_at_start = True
            s.runtime.faults.exit_code = 7
            s.runtime.faults.applies_to = lambda spec: spec.image == "bad"
            problem = await s.post("/leases", {"image": "bad", "wait_s": 30}, status=409)
            assert problem["type"] == "urn:rock:quarantined"
            assert f"rock quarantine clear {bad.digest}" in problem["hint"]
            [node] = await s.get("/nodes")
            assert node["quarantined"] == [bad.digest]
            s.runtime.faults.dies_at_start = False
            assert (await s.http.delete(f"/quarantine/{bad.digest}")).status_code == 204
            await s.post("/leases", {"image": "bad", "wait_s": 30})

    asyncio.run(main())
