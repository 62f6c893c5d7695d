"""Backoff: bounded, jittered over the whole range, reset by success."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.backoff import Backoff, BackoffPolicy

policies = st.tuples(st.floats(0.01, 10), st.floats(1, 100)).map(lambda p: BackoffPolicy(p[0], p[0] * p[1]))


@given(policies, st.integers(-5, 10_000), st.integers())
def test_a_delay_is_never_negative_nor_above_its_ceiling_nor_the_cap(
    policy: BackoffPolicy, failures: int, seed: int
) -> None:
    delay_s = policy.delay_s(failures, random.Random(seed))
    assert 0 <= delay_s <= policy.ceiling_s(failures) <= policy.cap_s


@given(policies, st.integers(1, 1000))
def test_the_ceiling_doubles_until_the_cap(policy: BackoffPolicy, failures: int) -> None:
    now, after = policy.ceiling_s(failures), policy.ceiling_s(failures + 1)
    assert after == pytest.approx(min(policy.cap_s, 2 * now))


def test_the_jitter_uses_the_whole_range() -> None:
    policy, rng = BackoffPolicy(1.0, 64.0), random.Random(1)
    delays = [policy.delay_s(7, rng) for _ in range(2000)]
    assert min(delays) < 2
    assert max(delays) > 62
    assert sum(delays) / len(delays) == pytest.approx(32, abs=1.5)


def test_without_a_failure_there_is_no_wait() -> None:
    assert BackoffPolicy().delay_s(0, random.Random(0)) == 0.0


@given(policies, st.lists(st.tuples(st.booleans(), st.floats(0, 1000)), max_size=50), st.integers())
def test_it_waits_after_failures_only_and_never_longer_than_the_cap(
    policy: BackoffPolicy, history: list[tuple[bool, float]], seed: int
) -> None:
    backoff, now, in_a_row = Backoff(policy, random.Random(seed)), 0.0, 0
    for failed, pause_s in history:
        now += pause_s
        if failed:
            backoff.failed(now)
            in_a_row += 1
        else:
            backoff.succeeded()
            in_a_row = 0
            assert backoff.may_try(now)
        assert backoff.failures == in_a_row
        assert backoff.may_try(now + policy.cap_s)


@pytest.mark.parametrize(("base_s", "cap_s"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_a_senseless_policy_is_refused(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="base_s"):
        BackoffPolicy(base_s, cap_s)
