"""/metrics: what Prometheus' own parser makes of it, against what happened, and against the documentation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Make = Callable[..., Any]
PAGE = Path(__file__).parents[3] / "docs" / "platform.md"
AT = "2026-01-01T00:00:00Z"
EPISODE = {"env": "toy", "task": "t", "seed": 1, "outcome": "completed", "started_at": AT, "ended_at": AT}


async def scraped(s: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels."""
    text = (await s.http.get("http://127.0.0.1/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_happened_is_counted(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            lease = await s.post("/leases", {"image": "plain"})
            lost = await s.post("/leases", {"image": "plain"})
            await s.http.delete(f"/leases/{lease['id']}")
            await s.runtime.kill(lost["sandbox_id"], oom=True)
            run = (await s.post("/runs", {"name": "n", "recipe": {}}))["id"]
            await s.post(f"/runs/{run}/episodes", [{**EPISODE, "id": "ep-1", "ledger": "trained"}], status=204)
            await s.http.get("/leases/none/nothing")

            async def counted() -> Any:
                found = await scraped(s)
                return found if found["rock_leases_ended_total", (("how", "lost"),)] == 1 else None

            found = await s.until(counted)
            assert found["rock_leases_granted_total", ()] == 2
            assert found["rock_leases_ended_total", (("how", "released"),)] == 1
            assert found["rock_claim_seconds_count", ()] == 2
            assert found["rock_claim_seconds_bucket", (("le", "+Inf"),)] == 2
            assert found["rock_database_up", ()] == 1
            assert found["rock_events_dropped_total", ()] == 0
            assert found["rock_quarantine", (("kind", "image"),)] == 0
            assert found["rock_node_standing", (("node", "local"), ("standing", "up"))] == 1
            assert found["rock_ledger_conserved", (("run", run),)] == 1
            assert found["rock_ledger_episodes", (("account", "trained"), ("run", run))] == 1
            route = (("method", "POST"), ("route", "/leases"), ("status", "2xx"))
            assert found["rock_request_seconds_count", route] == 2
            none = (("method", "GET"), ("route", "none"), ("status", "4xx"))
            assert found["rock_request_seconds_count", none] == 1

    asyncio.run(main())


def test_runs_at_work_show_their_newest_metrics(served: Make) -> None:
    def point(step: int, **values: float) -> dict[str, Any]:
        return {"step": step, "at": AT, "values": values}

    async def main() -> None:
        async with served() as s:
            at_work, ended = [(await s.post("/runs", {"name": "n", "recipe": {}}))["id"] for _ in range(2)]
            points = [
                point(1, old=1.0),
                *(point(step, reward=step / 10) for step in range(2, 10)),
                point(8, success=0.5),
            ]
            for run in (at_work, ended):
                await s.post(f"/runs/{run}/metrics", points, status=204)
            await s.http.patch(f"/runs/{ended}", json={"status": "completed"})
            found = await scraped(s)
            shown = {dict(key[1])["name"]: v for key, v in found.items() if key[0] == "rock_run_metric"}
            assert shown == {"reward": 0.9, "success": 0.5}
            assert {key[1]: v for key, v in found.items() if key[0] == "rock_run_step"} == {(("run", at_work),): 9}

    asyncio.run(main())


def test_a_run_with_many_metrics_shows_a_bounded_number_of_them(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            run = (await s.post("/runs", {"name": "n", "recipe": {}}))["id"]
            values = {f"m/{number:04}": 1.0 for number in range(1000)}
            await s.post(f"/runs/{run}/metrics", [{"step": 1, "at": AT, "values": values}], status=204)
            names = [dict(key[1])["name"] for key in await scraped(s) if key[0] == "rock_run_metric"]
            assert sorted(names) == sorted(values)[:256]

    asyncio.run(main())


def test_buckets_are_cumulative_and_end_with_the_count(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            for _ in range(3):
                await s.get("/health")
            found = await scraped(s)
            labels = {"method": "GET", "route": "/health", "status": "2xx"}
            buckets = sorted(
                (float(dict(key[1])["le"]), value)
                for key, value in found.items()
                if key[0] == "rock_request_seconds_bucket" and labels.items() <= dict(key[1]).items()
            )
            counts = [value for _, value in buckets]
            assert counts == sorted(counts)
            assert counts[-1] == found["rock_request_seconds_count", tuple(sorted(labels.items()))] == 3

    asyncio.run(main())


def test_every_family_is_in_the_documentation_and_nothing_else(served: Make) -> None:
    async def main() -> None:
        async with served() as s:
            await s.get("/health")
            text = (await s.http.get("http://127.0.0.1/metrics")).text
            families = {f.name for f in text_string_to_metric_families(text)}
            documented = set(re.findall(r"^\| `(rock_\w+?)(?:_total)?[`{]", PAGE.read_text(), re.M))
            assert families == documented

    asyncio.run(main())
