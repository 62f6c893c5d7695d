"""Adaptive concurrency and self-tuning: pure decisions from measurements."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from roll_core.engines.base import EngineStats
from roll_core.rollout.concurrency import ConcurrencyController, ConcurrencySettings
from roll_core.rollout.tuning import (
    EngineCurve,
    Measured,
    asymptotic_speedup,
    best_split,
    bound_s,
    ideal_step_s,
    optimal_beta,
    recommend,
    split_within_window,
    synchronous_step_s,
)


def reading(running: int, waiting: int, slots: int = 64) -> EngineStats:
    return EngineStats(0, 0, 0, 0, running, waiting, slots, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 500), st.integers(0, 400)), max_size=40),
    st.integers(1, 50),
    st.integers(50, 400),
)
def test_the_limit_stays_in_bounds_and_moves_the_right_way(readings, floor, ceiling) -> None:
    controller = ConcurrencyController(ConcurrencySettings(floor, ceiling), limit=floor)
    for step, (running, waiting, outside) in enumerate(readings):
        before, in_flight = controller.limit, running + waiting + outside
        after = controller.update(step * 10.0, reading(running, waiting), in_flight)
        assert floor <= after <= ceiling
        if running + waiting > 64 * 1.05 and in_flight <= before:
            assert after <= before, "it never grows while requests queue"
        if running + waiting < 64:
            assert after >= before, "it never shrinks while slots are empty"


@given(st.floats(0.05, 1.0), st.integers(1, 60), st.sampled_from([0.5, 1.0]))
def test_it_finds_how_many_episodes_fill_the_engine(share: float, start: int, fill: float) -> None:
    """A plant in which each episode spends ``share`` of its time in the engine."""
    controller = ConcurrencyController(ConcurrencySettings(fill=fill, ceiling=10_000), limit=start)
    for second in range(600):
        resident = round(controller.limit * share)
        controller.update(float(second), reading(min(64, resident), max(0, resident - 64)), controller.limit)
    resident = controller.limit * share
    assert 64 * fill * 0.9 <= resident <= 64 * fill * 1.1 + 1


positive = st.floats(0.1, 100)


@given(st.integers(2, 256), st.integers(1, 5000), positive, positive, positive, st.integers(1, 4), st.floats(0, 8))
def test_the_split_is_at_least_as_good_as_at_beta(workers, samples, generate, longest, train, epochs, alpha) -> None:
    m = Measured(workers, samples, generate, longest, train, epochs)
    tail = longest / (alpha + 1)
    at_beta = min(max(1, round(optimal_beta(m, tail) * workers)), workers - 1)
    best, step_s = best_split(m, tail)
    assert 0 < best < workers
    assert step_s == bound_s(m, best, tail) <= bound_s(m, at_beta, tail)
    assert asymptotic_speedup(m) == pytest.approx(synchronous_step_s(m) / ideal_step_s(m))


@given(st.integers(1, 256), positive, positive, positive)
def test_alpha_zero_is_colocated_on_all_workers(workers, generate, longest, train) -> None:
    advice = recommend(Measured(workers, 100, generate, longest, train), alpha=0.0)
    assert (advice.placement, advice.train_workers) == ("colocated", workers)
    assert advice.reasons


@given(st.integers(2, 128), positive, positive, positive, positive)
def test_a_split_is_only_advised_where_it_is_faster(workers, generate, longest, train, sync) -> None:
    advice = recommend(Measured(workers, 512, generate, longest, train, sync_s=sync))
    assert advice.predicted_s <= advice.synchronous_s
    if advice.placement == "split":
        assert 0 < advice.train_workers < workers
        assert advice.alpha >= 1


W5 = {"samples": 4096, "train_s": 2.2, "sync_s": 5.0}


def test_fewer_workers_train_where_the_longest_generation_needs_emptier_engines() -> None:
    curve = EngineCurve(0.01, 0.0006, 64, 2464.0, 16384)
    narrow, wide = (split_within_window(curve, alpha, workers=128, **W5) for alpha in (2, 8))
    assert narrow.train_workers < wide.train_workers
    assert wide.predicted_s < narrow.predicted_s


@given(st.integers(2, 160), st.floats(1, 8))
def test_no_predicted_step_is_shorter_than_its_training_or_its_full_engines(workers: int, alpha: float) -> None:
    curve = EngineCurve(0.01, 0.0006, 64, 2464.0, 16384)
    advice = split_within_window(curve, alpha, workers=workers, **W5)
    assert 0 < advice.train_workers < workers
    assert advice.predicted_s >= 4096 * 2.2 / advice.train_workers
    assert advice.predicted_s >= 4096 * curve.generate_s(64) / (workers - advice.train_workers)


@given(st.floats(0, 0.1), st.floats(0, 0.9))
def test_redundancy_is_advised_for_what_was_measured(slow: float, filtered: float) -> None:
    advice = recommend(Measured(8, 256, 1.0, 10.0, 1.0, groups=32, slow_rate=slow, filtered_rate=filtered))
    none = recommend(Measured(8, 256, 1.0, 10.0, 1.0, groups=32))
    assert (none.extra_groups, none.extra_members) == (0, 0)
    assume(slow > 0.001 or filtered > 0.05)
    assert advice.extra_groups > 0
