"""What trainers report and dashboards read, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]
AT = "2026-01-01T00:00:00Z"


def episode(number: int, **changes: Any) -> dict[str, Any]:
    base = {
        "id": f"ep-{number}",
        "env": "toy",
        "task": "a",
        "seed": number,
        "ledger": "trained",
        "outcome": "completed",
    }
    turns = [{"observation": "o", "response": "r", "action": "a"}]
    return {**base, "reward": 1.0, "turns": turns, "started_at": AT, "ended_at": AT, **changes}


def test_a_run_from_its_beginning_to_its_end(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            run = await s.post("/runs", {"name": "first", "recipe": {"lr": 1e-4}, "total_steps": 3})
            path = f"/runs/{run['id']}"
            points = [{"step": n, "at": AT, "values": {"loss": 1.0, "nan": None}} for n in range(3)]
            await s.post(f"{path}/metrics", points, status=204)
            assert [p["values"] for p in await s.get(f"{path}/metrics", since_step=1)] == [{"loss": 1.0}] * 2
            for _ in range(2):  # at least once
                await s.post(f"{path}/episodes", [episode(n) for n in range(5)], status=204)
            await s.post(f"{path}/episodes", [episode(4, ledger="void", outcome="void", reward=None)], status=204)
            page = await s.get(f"{path}/episodes", outcome="completed", limit=2)
            assert (page["total"], len(page["episodes"])) == (4, 2)
            assert (await s.get(f"{path}/episodes", ledger="void", phase="train"))["total"] == 1
            await s.post(f"{path}/episodes", [episode(7, task="heat mug", success=False)], status=204)
            for chosen in ({"success": "false"}, {"task": "MUG"}, {"text": "heat ep-7"}):
                found = await s.get(f"{path}/episodes", **chosen)
                assert (found["total"], [e["id"] for e in found["episodes"]]) == (1, ["ep-7"])
            await s.post(f"{path}/episodes", [episode(7, outcome="void", ledger="void")], status=204)
            assert len((await s.get(f"{path}/episodes/ep-1"))["turns"]) == 1
            ledger = await s.get(f"{path}/ledger")
            assert ledger["dispatched"] == 6 == sum(ledger["accounts"].values())
            changed = await s.http.patch(path, json={"status": "completed", "summary": {"success": 0.9}})
            assert changed.json()["summary"] == {"success": 0.9}
            assert (await s.get(path))["step"] == 2
            assert [r["id"] for r in await s.get("/runs")] == [run["id"]]
            kinds = [e["kind"] for e in await s.get("/events", run_id=run["id"])]
            assert kinds == ["run.completed", "run.started"]

    asyncio.run(main())


def test_what_does_not_exist_or_is_malformed_is_a_problem(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            for path in ("/runs/x", "/runs/x/metrics", "/runs/x/episodes", "/runs/x/ledger", "/runs/x/episodes/y"):
                assert (await s.get(path, status=404))["type"] == "urn:rock:not-found"
            await s.post("/runs/x/metrics", [{"step": 0, "at": AT, "values": {}}], status=404)
            await s.post("/runs/x/episodes", [episode(1)], status=404)
            await s.post("/runs", {"name": "n", "recipe": {}, "resumed_from": "run-nope"}, status=404)
            run = await s.post("/runs", {"name": "n", "recipe": {}})
            bad = await s.post(f"/runs/{run['id']}/episodes", [episode(1, ledger="somewhere")], status=422)
            assert "ledger" in bad["detail"]
            assert (await s.get(f"/runs/{run['id']}/episodes", status=422, limit=0))[
                "type"
            ] == "urn:rock:invalid-request"

    asyncio.run(main())


def rhythm(number: int, step: int, **changes: Any) -> dict[str, Any]:
    series = {name: [0.5, 1.5] for name in ("waad", "fai", "change", "gamma", "advantage", "entropy")}
    flags = {"anchor": [True, False], "preplan": [False, True]}
    tokens = {"tokens": ["look", " at", " it\x00"], "own": [1, 2]}
    return {"episode_id": f"ep-{number}", "step": step, "task": "a", **tokens, **series, **flags, **changes}


def test_attention_rhythms_are_listed_without_tokens_and_read_one_by_one(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            run = await s.post("/runs", {"name": "first", "recipe": {}})
            path = f"/runs/{run['id']}/rhythm"
            assert await s.get(path) == []
            coupling = {"anchors": 2.0, "followed": 1.0, "expected": 0.5}
            for _ in range(2):  # at least once
                await s.post(path, [rhythm(1, 3, coupling=coupling), rhythm(2, 4)], status=204)
            listed = await s.get(path)
            assert [(r["episode_id"], r["step"]) for r in listed] == [("ep-2", 4), ("ep-1", 3)]
            assert listed[1]["coupling"]["followed"] == 1.0
            assert "tokens" not in listed[0]
            assert (await s.get(f"{path}/ep-1"))["tokens"] == ["look", " at", " it\x00"]
            missing = await s.get(f"{path}/ep-7", status=404)
            assert "ep-7" in missing["detail"]
            assert (await s.get("/runs/run-none/rhythm", status=404))["status"] == 404
            await s.post("/runs/run-none/rhythm", [rhythm(1, 1)], status=404)
            short = await s.post(path, [rhythm(3, 1, waad=[1.0])], status=422)
            assert "waad has 1 entries, expected 2" in str(short)

    asyncio.run(main())


def test_of_a_run_the_rhythms_of_the_latest_steps_are_kept(served: Make) -> None:
    from rock.wire.rhythm import KEPT

    async def main() -> None:
        async with served() as s:
            run, other = [(await s.post("/runs", {"name": n, "recipe": {}}))["id"] for n in ("first", "second")]
            await s.post(f"/runs/{other}/rhythm", [rhythm(0, 0)], status=204)
            await s.post(f"/runs/{run}/rhythm", [rhythm(n, n) for n in range(KEPT)], status=204)
            await s.post(f"/runs/{run}/rhythm", [rhythm(KEPT, KEPT), rhythm(KEPT + 1, KEPT + 1)], status=204)
            steps = [r["step"] for r in await s.get(f"/runs/{run}/rhythm")]
            assert steps == list(range(KEPT + 1, 1, -1))
            assert len(await s.get(f"/runs/{other}/rhythm")) == 1

    asyncio.run(main())
