"""Where a step's worker seconds went, and what follows for the next ones. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roll_core.engines.base import EngineStats
from roll_core.rollout.machine import Pace
from roll_core.training.tuner import AGREE, Bounds, StepFacts, Tuner, measure
from roll_core.training.worker_time import Look, Looks, StepTimes, StepTokens, step_work

NONE = EngineStats(0, 0, 0, 0, 0, 0, 8, 0.0)
seconds = st.floats(0, 100)


@st.composite
def looks(draw: st.DrawFn) -> Looks:
    seen = Looks()
    look = st.builds(
        Look, idle=st.integers(0, 3), running=st.integers(0, 8), slots=st.just(8), in_environment=st.integers(0, 9),
        learning=st.booleans(), held_back=st.booleans(), loading=st.booleans(),
    )  # fmt: skip
    for one in draw(st.lists(look, max_size=12)):
        seen.add(one)
    return seen


@st.composite
def token_counts(draw: st.DrawFn) -> StepTokens:
    ended = draw(st.integers(0, 10_000))
    return StepTokens(draw(st.integers(0, 10_000)), draw(st.integers(0, ended)), ended)


@given(
    st.builds(StepTimes, seconds, seconds, seconds),
    st.lists(st.tuples(seconds, seconds), min_size=1, max_size=4),
    token_counts(),
    looks(),
    st.booleans(),
)
def test_the_parts_of_a_step_are_all_its_worker_seconds(times, engines, tokens, seen, shared) -> None:
    before = [NONE for _ in engines]
    after = [replace(NONE, busy_s=busy, load_s=load) for busy, load in engines]
    work = step_work(times, before, after, tokens, seen, shared=shared)
    assert work.workers == len(engines) + (not shared)
    assert work.seconds.total == pytest.approx(work.workers * times.wall_s, abs=1e-6)
    values = work.values
    parts = [share for name, share in values.items() if name.startswith("bubble/") and name != "bubble/total"]
    assert len(parts) == 5
    assert min(parts) >= -1e-9
    assert sum(parts) == pytest.approx(values["bubble/total"])
    useful = work.seconds.useful / work.seconds.total if work.seconds.total else 0.0
    if work.seconds.total:
        assert values["bubble/total"] == pytest.approx(1 - useful)


def test_a_step_is_accounted_as_one_would_by_hand() -> None:
    """10 s: one engine computes 6 s and loads 1 s, a quarter of what ended was in vain; the learner works 5 s."""
    seen = Looks()
    seen.add(Look(idle=1, running=0, slots=8, in_environment=8, learning=False, held_back=False))
    seen.add(Look(idle=1, running=0, slots=8, in_environment=0, learning=True, held_back=True))
    work = step_work(
        StepTimes(10.0, 5.0, 1.0), [NONE], [replace(NONE, busy_s=6.0, load_s=1.0)], StepTokens(80, 60, 80), seen
    )
    found = work.seconds
    assert (found.useful, found.redundancy) == (6.0 * 0.75 + 5.0, 6.0 * 0.25)
    assert (found.environment, found.train_wait, found.sync) == (1.5 + 4.0, 1.5, 2.0)
    assert found.tail == 0.0
    assert work.ideal_s == pytest.approx((60 * 6.0 / 80 + 5.0) / 2 + 1.0)
    assert work.values["roofline/efficiency"] == pytest.approx(work.ideal_s / 10.0)


def test_where_engine_and_learner_take_turns_learning_is_no_idle_engine() -> None:
    engines = [NONE, NONE], [replace(NONE, busy_s=6.0)] * 2
    work = step_work(StepTimes(10.0, 4.0, 0.0), *engines, StepTokens(10, 10, 10), Looks(), shared=True)
    assert work.workers == 2
    assert work.values["bubble/total"] == pytest.approx(0.0)


# --- the tuner -------------------------------------------------------------------------------------------------------

BOUNDS = Bounds(
    alpha=3, group_size=8, groups_per_batch=4, extra_groups=0, extra_members=0, order="finished", engines=3, epochs=2
)
STEP = StepFacts(samples=32, groups=4, generate_s=30.0, learner_s=12.0, sync_s=0.1, longest_s=40.0, ended=32)

facts = st.builds(
    StepFacts,
    samples=st.integers(1, 64),
    groups=st.integers(1, 8),
    generate_s=st.floats(0.01, 100),
    learner_s=st.floats(0.01, 100),
    sync_s=st.floats(0, 10),
    longest_s=st.floats(0, 500),
    voids=st.integers(0, 50),
    ended=st.integers(0, 100),
    filtered_groups=st.integers(0, 20),
    env_s=st.lists(st.floats(0, 10), max_size=10).map(tuple),
)
bounds = st.builds(
    Bounds,
    alpha=st.sampled_from([0, 0.5, 1, 2, 7]),
    group_size=st.integers(1, 16),
    groups_per_batch=st.integers(1, 16),
    extra_groups=st.integers(0, 2),
    extra_members=st.integers(0, 2),
    order=st.sampled_from(["opened", "finished"]),
    engines=st.integers(1, 8),
    epochs=st.integers(1, 3),
)


@given(bounds, st.lists(facts, min_size=1, max_size=12))
def test_whatever_is_measured_the_recipe_is_kept(allowed: Bounds, steps) -> None:
    tuner = Tuner(allowed)
    for step in steps:
        decision = tuner.observe(step)
        assert 0 <= decision.pace.alpha <= allowed.alpha
        assert decision.pace.extra_members <= allowed.extra_members + 1
        assert decision.pace.extra_groups <= (allowed.groups_per_batch if allowed.order == "finished" else 0)
        assert decision.advice.reasons
        assert 0 < decision.values()["auto/beta"] <= 1
        assert str(decision)


def test_measurements_are_means_over_the_steps() -> None:
    measured = measure([STEP, replace(STEP, generate_s=34.0, longest_s=20.0, voids=64)], BOUNDS)
    assert (measured.workers, measured.samples, measured.epochs) == (4, 32, 2)
    assert measured.generate_s == pytest.approx(1.0)
    assert measured.train_s == pytest.approx(12 / 32 / 2)
    assert measured.longest_s == pytest.approx(30.0)
    assert measured.void_rate == pytest.approx(0.5)


def test_a_slow_environment_asks_for_redundancy_and_a_quick_one_does_not() -> None:
    calm = Tuner(BOUNDS).observe(replace(STEP, env_s=(1.0,) * 32))
    slow = Tuner(BOUNDS).observe(replace(STEP, env_s=(1.0,) * 28 + (9.0,) * 4))
    assert calm.pace.extra_groups == 0
    assert slow.pace.extra_groups > 0


def test_it_is_certain_only_when_its_decisions_agree() -> None:
    tuner = Tuner(BOUNDS)
    for _ in range(AGREE - 1):
        tuner.observe(STEP)
        assert not tuner.certain
    assert tuner.observe(STEP).pace == Pace(alpha=3, extra_groups=0, extra_members=0)
    assert tuner.certain


def test_what_is_not_worth_hiding_is_done_in_turns() -> None:
    decision = Tuner(BOUNDS).observe(replace(STEP, longest_s=0.01))
    assert decision.pace.alpha == 0
    assert decision.values()["auto/colocated"] == 1.0
    assert "all workers generate, then all train" in str(decision)
