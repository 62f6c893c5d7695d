"""Bounds: what no scheduler can beat. They are held against what the scheduler does, on the same draws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.workloads import w5
from roll_core.simulation.bounds import clairvoyant_s, redundant_s, split_step_s
from roll_core.simulation.engine import EngineModel
from roll_core.simulation.run import Policy, simulate
from roll_core.simulation.workload import Lengths, Workload

ENGINE = EngineModel(0.008, 0.0004, 8)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=25)
def test_the_scheduler_never_beats_who_knows_every_length(groups: int, size: int, engines: int, seed: int) -> None:
    workload = Workload("w", engines, ENGINE, Lengths(300, 0.7, 0.4, cap=2000), groups=groups, group_size=size)
    outcome = simulate(workload, Policy(), seed=seed)
    assert len(outcome.lengths) == workload.samples
    assert clairvoyant_s(outcome.lengths, ENGINE, engines) <= outcome.elapsed_s * (1 + 1e-9)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 8))
def test_the_bound_is_at_least_the_work_and_the_longest(lengths: list[int], engines: int) -> None:
    bound_s = clairvoyant_s(lengths, ENGINE, engines)
    assert bound_s >= max(lengths) * ENGINE.token_s(1) * (1 - 1e-9)
    assert bound_s >= sum(lengths) * ENGINE.full_token_s / engines * (1 - 1e-9)


def test_equal_sequences_that_fill_every_engine_meet_the_bound_exactly() -> None:
    assert clairvoyant_s([1000] * 16, ENGINE, 2) == pytest.approx(1000 * ENGINE.token_s(8))


def test_more_staleness_never_makes_the_shortest_step_longer() -> None:
    steps = [split_step_s(w5(16), alpha)[0] for alpha in (1.0, 2.0, 4.0)]
    assert steps == sorted(steps, reverse=True)
    roofline_s = 4096 * (w5(16).lengths.mean * w5(16).engine.full_token_s + 2.2) / 16
    assert min(steps) >= roofline_s


def test_redundancy_waits_for_the_last_wanted_member_of_the_last_wanted_group() -> None:
    assert redundant_s([[1.0, 9.0, 3.0], [2.0, 2.0, 50.0], [70.0, 80.0, 90.0]], groups=2, members=2) == 3.0
