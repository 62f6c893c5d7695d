"""The production scheduler under the virtual clock: bounds, equality with synchronous training, published speed-ups."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workloads import SEEDS, normal_latency, w1, w2, w3
from rock.domain.outcome import LedgerState
from roll_core.simulation.baselines import barrier_s, rounds_s, synchronous_s
from roll_core.simulation.engine import EngineModel
from roll_core.simulation.environment import EnvironmentModel
from roll_core.simulation.run import Policy, simulate
from roll_core.simulation.workload import Lengths, Workload

SMALL = Workload(
    "small",
    4,
    EngineModel(0.01, 0.001, 8, load_s=1.0),
    Lengths(100, response=0.8),
    EnvironmentModel(turns=3, latency=partial(normal_latency, 2.0, 2.0), keep=0.7, loss=0.1),
    groups=4,
    group_size=4,
    train_s=1.0,
    sync_s=1.0,
)


@given(
    st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]),
    st.sampled_from(["opened", "finished"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([None, 0.5, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=25)
def test_staleness_never_exceeds_alpha(alpha, order, train_workers, members, groups, fill, seed) -> None:
    policy = Policy(
        alpha,
        order,
        extra_groups=groups if order == "finished" else 0,
        extra_members=members,
        train_workers=train_workers,
        fill=fill,
    )
    outcome = simulate(SMALL, policy, seed=seed, steps=4)
    assert len(outcome.steps) == 4
    assert max(step.staleness_max for step in outcome.steps) <= alpha
    assert outcome.episodes[LedgerState.TRAINED] == 4 * SMALL.samples


def test_a_simulation_is_repeatable() -> None:
    first, second = (simulate(SMALL, Policy(2.0, train_workers=1, fill=1.0), seed=3, steps=3) for _ in range(2))
    assert first.steps == second.steps
    assert (first.tokens, first.episodes) == (second.tokens, second.episodes)


def test_alpha_zero_takes_as_long_as_a_synchronous_loop() -> None:
    workload = replace(SMALL, environment=replace(SMALL.environment, keep=1.0, loss=0.0))
    ours = simulate(workload, Policy(0.0), seed=1, steps=3).elapsed_s
    assert synchronous_s(workload, 1, 3) * 3 / ours == pytest.approx(1.0, rel=0.02)


def test_all_worker_seconds_are_accounted_for() -> None:
    outcome = simulate(SMALL, Policy(1.0, train_workers=1, fill=1.0), seed=1, steps=6)
    seconds = outcome.worker_seconds
    assert seconds.total == pytest.approx(SMALL.engines * outcome.elapsed_s, rel=0.05)
    assert sum(seconds.bubble().values()) + seconds.useful / seconds.total == pytest.approx(1.0)
    assert seconds.environment > 0
    assert seconds.sync > 0


def test_dropped_work_is_charged_with_its_tokens() -> None:
    workload = replace(SMALL, environment=replace(SMALL.environment, keep=1.0, loss=0.0))
    outcome = simulate(workload, Policy(0.0, "finished", extra_groups=3), seed=2, steps=3)
    assert outcome.episodes.get(LedgerState.STALE, 0) > 0
    assert outcome.tokens[LedgerState.STALE] > 0
    assert outcome.goodput < 1


def test_environment_asynchrony_reaches_the_published_ratio() -> None:
    workload = w3(10.0)
    assert barrier_s(workload, 11) / simulate(workload, Policy(), seed=11).elapsed_s >= 2.4  # published: 2.46


def test_queue_scheduling_with_redundant_prompts_reaches_the_published_ratio() -> None:
    workload = w2(8)
    policy = Policy(order="finished", extra_groups=16)
    ratios = [rounds_s(workload, seed) / simulate(workload, policy, seed=seed).elapsed_s for seed in SEEDS]
    assert sum(ratios) / len(ratios) >= 3.4  # published: 3.4


def test_replication_spreads_a_prompt_over_engines() -> None:
    workload = w1(16, 64)
    pinned = simulate(workload, Policy(replicate=False), seed=11).elapsed_s
    assert pinned / simulate(workload, Policy(), seed=11).elapsed_s > 1.5  # published, over many draws: 1.95
