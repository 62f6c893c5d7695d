"""``python -m benchmarks.dashboard [--quick]``: the page in front of 1,000 sandboxes and a run of 100,000 episodes.

Real parts: 20 nodes on the fake runtime in one process, the control plane with its API and SQLite in another, the
dashboard in a third, a headless Chromium. Sandboxes are leased and 1 % of them die a minute. The run is invented
(1,000 steps, 60 metrics a step); what is measured is the page, not the training. Prints one JSON object as its last
line, seconds as seen by the browser:

- ``first_paint_s``: from asking for the morning page to its sentence, median over visitors of a page that serves;
  ``drawn_s``: until the last of its parts is there; ``cold_first_paint_s``: the very first visitor of the process;
- ``fleet_first_paint_s``, ``fleet_drawn_s``: the same of the fleet's page, with all sandboxes in its table;
- ``refresh_s``, ``refresh_p99_s``: one refresh of the morning page, from the browser's question to the answer's last
  byte; ``shown_after_s``: from a step's report to its number on the page, which asks every 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from benchmarks._measuring import home, machine, percentile
from benchmarks.control_plane import process
from dashboard import server
from dashboard.screenshots import browser
from rock.sdk import (
    EpisodeRecord,
    LeaseRequest,
    LedgerState,
    MetricPoint,
    Rock,
    RockSync,
    RunCreate,
    RunUpdate,
    StorageError,
    TurnRecord,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

log = logging.getLogger("benchmarks.dashboard")

NODES = 20
STEPS = 1000
METRICS_BESIDE = 45
"""As many as a run with roofline, mismatch and a critic reports beside those the page knows."""
_CLAIMS_AT_ONCE = 16
_REPORTS_AT_ONCE = 2
_TRIES = 30
_PER_REPORT = 200
_STEP_S = 20.0
_CAUSES = ("tail", "environment", "train_wait", "sync", "redundancy")
_WAIT_MS = 120_000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 sandboxes, 5,000 episodes, fewer looks")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    found = run(100, 5_000, visits=3, refreshes=5) if args.quick else run(1000, 100_000, visits=7, refreshes=20)
    print(json.dumps(found))
    return 0


def run(sandboxes: int, episodes: int, *, visits: int, refreshes: int) -> dict[str, Any]:
    settings = {"nodes": NODES, "capacity": 2 * sandboxes // NODES, "pool": 1, "failures_per_min": 0.01}
    with home() as folder, process("nodes", folder, settings) as _, process("control", folder, settings) as plane:
        url = plane.ready["url"]
        began = time.perf_counter()
        run_id = asyncio.run(fill(url, sandboxes, episodes))
        filled_s = time.perf_counter() - began
        log.info("%d sandboxes and %d episodes in %.0f s", sandboxes, episodes, filled_s)
        os.environ["ROCK_HOME"] = str(folder / "dash")
        with served(url) as address, browser() as chromium:
            found = look(chromium, address, url, run_id, visits, refreshes)
    return {"sandboxes": sandboxes, "episodes": episodes, "fill_s": round(filled_s, 1)} | found | machine()


@contextmanager
def served(url: str) -> Iterator[str]:
    child, where = server.start("127.0.0.1", 0, url)
    try:
        yield where.url
    finally:
        server.end(child)


# --- what the page shows ---------------------------------------------------------------------------------------------


async def fill(url: str, sandboxes: int, episodes: int) -> str:
    async with Rock(url, timeout_s=120.0) as rock:
        run = await rock.create_run(RunCreate(name="benchmark", recipe={"env": "toy"}, total_steps=2 * STEPS))
        start = datetime.now(UTC) - timedelta(seconds=_STEP_S * STEPS)
        rng = random.Random(7)
        for first in range(1, STEPS + 1, 100):
            points = [point(step, start, rng) for step in range(first, first + 100)]
            await rock.report_metrics(run.id, points)
        leasing, reporting = asyncio.Semaphore(_CLAIMS_AT_ONCE), asyncio.Semaphore(_REPORTS_AT_ONCE)

        async def lease() -> None:
            async with leasing:
                request = LeaseRequest(env="toy", ttl_s=7200.0, wait_s=600.0, run_id=run.id, recovery="replay")
                await rock.create_lease(request)

        async def report(first: int) -> None:
            async with reporting:
                numbers = range(first, min(episodes, first + _PER_REPORT))
                await until_stored(rock, run.id, [episode(i, episodes, start) for i in numbers])

        await asyncio.gather(*(lease() for _ in range(sandboxes)))
        await asyncio.gather(*(report(first) for first in range(0, episodes, _PER_REPORT)))
        await rock.update_run(run.id, RunUpdate(status="training"))
        return run.id


async def until_stored(rock: Rock, run_id: str, records: list[EpisodeRecord]) -> None:
    """As a trainer does it: what a machine that stood still did not store is sent again. Filling is not measured."""
    for _ in range(_TRIES):
        with suppress(StorageError):
            await rock.report_episodes(run_id, records)
            return
        await asyncio.sleep(1.0)
    await rock.report_episodes(run_id, records)


def point(step: int, start: datetime, rng: random.Random) -> MetricPoint:
    success = 0.2 + 0.5 * step / STEPS + rng.gauss(0, 0.03)
    values = {
        "rollout/success": success,
        "rollout/reward": success,
        "rollout/void_rate": abs(rng.gauss(0.01, 0.005)),
        "rollout/tokens_per_s": rng.gauss(2000, 100),
        "staleness/mean": abs(rng.gauss(0.9, 0.2)),
        "staleness/max": 2.0,
        "time/step_s": _STEP_S,
        "roofline/workers": 8.0,
        "roofline/efficiency": 0.5,
        "bubble/total": 0.1 * len(_CAUSES),
        "alerts/firing": 0.0,
    }
    values |= {f"bubble/{cause}": 0.1 for cause in _CAUSES}
    values |= {f"learner/metric_{i:02d}": rng.random() for i in range(METRICS_BESIDE)}
    return MetricPoint(step=step, at=start + timedelta(seconds=_STEP_S * step), values=values)


def episode(i: int, count: int, start: datetime) -> EpisodeRecord:
    step = 1 + i * STEPS // count
    began = start + timedelta(seconds=_STEP_S * (step - 1))
    void, won = i % 97 == 0, i % 3 == 0
    turn = TurnRecord(observation="You see a door.", response="open door", action="open door", tokens=12, env_s=0.01)
    return EpisodeRecord(
        id=f"ep-{i:010x}",
        env="toy",
        task=f"task-{i % 500}",
        seed=i,
        step=step,
        ledger=LedgerState.VOID if void else LedgerState.TRAINED,
        outcome="void" if void else "completed",
        reward=None if void else float(won),
        success=None if void else won,
        turns=(turn, turn),
        generated_tokens=24,
        sandbox_s=2.0,
        open_s=0.01,
        reset_s=0.2,
        started_at=began,
        ended_at=began + timedelta(seconds=2, microseconds=i),
    )


# --- looking at it ---------------------------------------------------------------------------------------------------


def look(chromium: Browser, address: str, url: str, run_id: str, visits: int, refreshes: int) -> dict[str, Any]:
    cold_s, _ = visit(chromium, address, ".rk-facts")
    morning = [visit(chromium, address, ".rk-facts") for _ in range(visits)]
    fleet = [visit(chromium, f"{address}/fleet", '[data-testid="stDataFrame"]') for _ in range(visits)]
    found = {"cold_first_paint_s": round(cold_s, 3)}
    for name, pairs in (("", morning), ("fleet_", fleet)):
        paints, drawn = zip(*pairs, strict=True)
        found |= {f"{name}first_paint_s": middle(paints), f"{name}drawn_s": middle(drawn)}
        found |= {f"{name}first_paint_most_s": round(max(paints), 3)}
    took, shown = watch(chromium, address, url, run_id, refreshes)
    found |= {"refresh_s": middle(took), "refresh_p99_s": round(percentile(took, 0.99), 3), "refreshes": len(took)}
    return found | {"shown_after_s": middle(shown)}


def middle(values: Any) -> float:
    return round(percentile(list(values), 0.5), 3)


def visit(chromium: Browser, address: str, last: str) -> tuple[float, float]:
    """Seconds to the sentence, and to the last part, of a visitor with an empty cache."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        began = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(".rk-banner", timeout=_WAIT_MS)
        painted_s = time.perf_counter() - began
        page.wait_for_selector(last, timeout=_WAIT_MS)
        return painted_s, time.perf_counter() - began
    finally:
        context.close()


def watch(chromium: Browser, address: str, url: str, run_id: str, refreshes: int) -> tuple[list[float], list[float]]:
    """Seconds of refreshes, and from the report of a step to its number on the page."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        traffic = Traffic(page)
        page.goto(address)
        page.wait_for_selector(".rk-facts", timeout=_WAIT_MS)
        page.wait_for_timeout(4000)  # what opening the page asked for is answered: from now on it only refreshes
        traffic.rounds.clear()
        shown = []
        rng = random.Random(9)
        with RockSync(url) as rock:
            for step in range(STEPS + 1, STEPS + 1 + refreshes):
                start = datetime.now(UTC) - timedelta(seconds=_STEP_S * step)
                rock.report_metrics(run_id, [point(step, start, rng)])
                began = time.perf_counter()
                page.wait_for_selector(f'.rk-tile .rk-value:text-is("{step:,}")', timeout=_WAIT_MS)
                shown.append(time.perf_counter() - began)
        page.wait_for_timeout(4000)
        return traffic.took(), shown
    finally:
        context.close()


class Traffic:
    """What a page asks over its socket, and until when it is answered."""

    def __init__(self, page: Page) -> None:
        self.rounds: list[list[float]] = []
        page.on("websocket", self._follow)

    def _follow(self, socket: Any) -> None:
        socket.on("framesent", lambda _: self.rounds.append([time.perf_counter()]))
        socket.on("framereceived", self._answered)

    def _answered(self, _: object) -> None:
        if self.rounds:
            self.rounds[-1].append(time.perf_counter())

    def took(self) -> list[float]:
        """Of every question that was answered; the last one may still be under way."""
        return [times[-1] - times[0] for times in self.rounds[:-1] if len(times) > 1]


if __name__ == "__main__":
    raise SystemExit(main())
