"""How large a warm pool is: enough for the demand, never flapping, nothing kept for a demand that is over."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rock.domain.sizing import MAX_GROWTH, Demand, PoolLimits, Sizer, SizingPolicy, StartTimes, poisson_level

POLICY = SizingPolicy()


def sizer(ready: int = 2, start_s: float = 1.0, **limits: int) -> Sizer:
    made = Sizer(POLICY, PoolLimits(ready, **limits))
    made.starts.note(start_s)
    return made


def arrivals(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    rng, now, out = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate_per_s)) < seconds:
        out.append(now)
    return out


@given(st.floats(0, 60), st.floats(0.5, 0.999), st.integers(1, 200))
def test_the_level_is_the_least_that_serves_the_wanted_share(mean: float, hit_rate: float, most: int) -> None:
    level = poisson_level(mean, hit_rate, most)

    def below(n: int) -> float:
        return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(n))

    if mean < 1e-6:
        assert level == 0
        return
    assert level <= most
    if level < most:
        assert below(level) >= hit_rate - 1e-9
    if level > 1:
        assert below(level - 1) < hit_rate + 1e-9


def test_a_flood_asks_for_all_there_may_be() -> None:
    assert poisson_level(1e9, 0.99, 40) == 40


def test_the_start_time_is_the_one_that_nine_of_ten_keep() -> None:
    starts = StartTimes()
    for n in range(100):
        starts.note(float(n))
    assert starts.p90_s == pytest.approx(93, abs=2), "of the last 64"


@given(
    st.integers(0, 10),
    st.integers(0, 10),
    st.integers(0, 40),
    st.lists(st.tuples(st.floats(0, 400), st.booleans(), st.booleans()), max_size=80),
)
def test_the_level_stays_within_its_limits_whatever_happens(
    ready: int, minimum: int, maximum: int, steps: list[tuple[float, bool, bool]]
) -> None:
    limits = PoolLimits(ready, minimum, maximum)
    s, now = Sizer(POLICY, limits), 0.0
    for gap, claims, may_grow in steps:
        now += gap
        if claims:
            s.note_claim(now)
        level = s.target(now, may_grow=may_grow)
        assert minimum <= level <= max(ready, minimum, maximum or MAX_GROWTH * ready)
        if not s.idle(now):
            assert level >= ready
        elif not claims:
            assert level == minimum
        if not may_grow:
            assert level <= max(ready, minimum)
        surplus = s.surplus(now, ready=12, starting=1, waiting=0)
        assert 0 <= surplus <= max(0, 12 if level == 0 else 13 - level)


def test_a_burst_finds_the_pool_as_large_as_the_last_one_left_it() -> None:
    s = sizer()
    for burst in range(4):
        at = 60.0 * burst
        if burst:
            assert s.target(at) >= 16
        for n in range(16):
            s.note_claim(at + 0.01 * n)
            s.target(at + 0.01 * n)


def test_demand_that_is_over_is_forgotten_step_by_step() -> None:
    s = sizer(ready=2)
    for at in arrivals(8, 60, seed=1):
        s.note_claim(at)
        s.target(at)
    high = s.level
    assert high >= 10
    falling = [s.target(60.0 + t) for t in range(600)]
    assert all(0 <= a - b <= 1 for a, b in pairwise(falling))
    assert falling[int(POLICY.hold_s) - 2] == high
    assert falling[-1] == 2


def test_an_idle_pool_keeps_its_minimum_only() -> None:
    s = sizer(ready=3, minimum=1)
    s.note_claim(0)
    assert s.target(1) == 3
    assert s.target(POLICY.idle_after_s) == 1


def test_a_drained_pool_gives_everything_back_at_once() -> None:
    s = sizer(ready=3)
    s.target(0)
    s.limits = PoolLimits(0)
    assert s.target(1) == 0
    assert s.surplus(1, ready=3, starting=0, waiting=0) == 3


def test_what_is_too_much_waits_for_a_claim_before_it_goes() -> None:
    s = sizer(ready=2)
    s.target(0)
    assert s.surplus(0, ready=4, starting=0, waiting=0) == 0
    assert s.surplus(POLICY.spare_s, ready=4, starting=0, waiting=0) == 1
    assert s.surplus(POLICY.spare_s + 1, ready=3, starting=0, waiting=0) == 0
    assert s.surplus(POLICY.spare_s + POLICY.step_s, ready=3, starting=0, waiting=0) == 1


def test_a_crowded_machine_keeps_no_more_than_is_configured() -> None:
    s = sizer(ready=2)
    for at in arrivals(10, 20, seed=2):
        s.note_claim(at)
    assert s.target(20) > 2
    assert s.target(20, may_grow=False) == 2


@settings(max_examples=25)
@given(st.floats(0.2, 10), st.floats(0.1, 3), st.integers(0, 2**32))
def test_the_level_of_a_steady_load_follows_littles_law_with_a_bounded_safety(
    rate: float, lead_s: float, seed: int
) -> None:
    demand = Demand(POLICY)
    for at in arrivals(rate, 120, seed):
        demand.note(at, lead_s)
    level, mean = demand.level(120, lead_s, 1000), rate * lead_s
    assert level <= mean + 6 * math.sqrt(mean) + 6
    assert level >= mean - 4 * math.sqrt(mean) - 1
