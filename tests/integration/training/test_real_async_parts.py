"""The parts of `benchmarks.real_async`: a scripted environment instead of sandboxes, latencies of milliseconds."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks._slow import Latency, SlowSessions
from benchmarks.real_async import FULL, QUICK, Measured, arms, common, pooled, run_arm, summarise, warm_start
from roll_core.config import Recipe, load_recipe
from roll_core.rollout.sessions import LocalSessions
from roll_core.training.metrics import Rate

QUIET = Console(file=StringIO())
SHORT = Latency(mean_s=0.02, std_s=0.01)


@pytest.mark.parametrize("scale", [QUICK, FULL])
def test_all_arms_train_on_as_many_samples_and_only_the_asynchronous_ones_run_ahead(scale) -> None:
    recipes = {a.name: load_recipe("alfworld-tiny", [*common(scale), *a.settings]) for a in arms(scale, 2.0)}
    assert len({(r.training.steps, r.rollout.groups_per_batch, r.rollout.group_size) for r in recipes.values()}) == 1
    sync, ahead = recipes["sync"].rollout, recipes["async"].rollout
    assert (sync.alpha, sync.extra_groups, sync.extra_members, sync.order) == (0, 0, 0, "opened")
    assert (ahead.alpha, ahead.extra_groups, ahead.extra_members, ahead.order) == (2, 1, 1, "finished")
    assert sync.concurrency == sync.groups_per_batch * sync.group_size  # the batch is never waiting for a sandbox
    if scale.same:
        assert recipes["async_same"].rollout.concurrency == sync.concurrency


def test_latency_is_never_negative_and_has_the_mean_of_a_clipped_normal() -> None:
    rng, latency = random.Random(0), Latency(mean_s=1.0, std_s=0.5)
    drawn = [latency.draw(rng) for _ in range(20_000)]
    assert min(drawn) == 0.0
    assert sum(drawn) / len(drawn) == pytest.approx(1.004, abs=0.02)  # 1 + .5·(φ(2) − 2·Φ(−2))


def test_steps_are_slow_only_while_switched_on(sessions) -> None:
    slow = SlowSessions(sessions, Latency(mean_s=0.2, std_s=0.0))

    async def step_s() -> float:
        async with slow.open("red", 0) as session:
            await session.reset("red", 0)
            began = time.perf_counter()
            await session.step("open red door")
            return time.perf_counter() - began

    async def main() -> tuple[float, float]:
        off_s = await step_s()
        slow.on = True
        return off_s, await step_s()

    off_s, on_s = asyncio.run(main())
    assert off_s < 0.2 <= on_s


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def made(steps: int = 3, evaluated: int = 12, **rollout: object) -> Recipe:
        return make_recipe(
            rollout={"group_size": 4, "groups_per_batch": 2, "concurrency": 24, **rollout},
            algorithm={"filter_zero_variance": False},
            evaluation={"tasks": evaluated},
            training={"steps": steps},
            warm_start={"epochs": 4},
        )

    return made


def test_both_arms_start_from_one_kept_warm_start(recipe, sessions: LocalSessions, tmp_path: Path) -> None:
    slow = SlowSessions(sessions, SHORT)

    async def main() -> tuple[list[Measured], bool]:
        untrained = recipe(steps=0, evaluated=0)
        start = await warm_start(untrained, slow, tmp_path / "kept", QUIET)
        made_at = start.stat().st_mtime_ns
        again = await warm_start(untrained, slow, tmp_path / "kept", QUIET)
        kept = again == start and again.stat().st_mtime_ns == made_at
        found = []
        for name, settings in (
            ("sync", {"alpha": 0}),
            ("async", {"alpha": 2, "order": "finished", "extra_groups": 1, "extra_members": 1}),
        ):
            where = tmp_path / name
            found.append(await run_arm(name, 0, recipe(**settings), start, where, slow, slow, QUIET))
        return found, kept

    results, kept = asyncio.run(main())
    sync, ahead = results
    assert kept
    assert sync.before.n == ahead.before.n == 12
    assert sync.samples == ahead.samples == 3 * 8
    assert sync.numbers["staleness_max"] == 0
    assert 0 <= ahead.numbers["staleness_max"] <= 2
    assert not slow.on
    summary = summarise(results, 2.0)
    assert summary["same_samples"]
    assert summary["speedup"] == round(sync.wall_s / ahead.wall_s, 2)
    assert {"low", "high"} <= summary["sync_success"].keys() & summary["async_success"].keys()


def test_rounds_are_added_up_not_averaged() -> None:
    rate = Rate.of(5, 10)
    one = Measured("sync", 0, 30.0, 3, 24, rate, rate, {})
    runs = [one, replace(one, arm="async", wall_s=10.0), replace(one, round=1, wall_s=10.0)]
    summary = summarise([*runs, replace(one, arm="async", round=1, wall_s=10.0)], 1.0)
    assert summary["speedup"] == 2.0
    assert summary["speedup_by_round"] == [3.0, 1.0]
    assert pooled([rate, rate]) == Rate.of(10, 20)
