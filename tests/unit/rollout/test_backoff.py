"""When to start again after losses."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from roll_core.rollout.backoff import OutageGuard


def guard(free: int = 2) -> OutageGuard:
    return OutageGuard(free=free, rng=random.Random(0), base_s=1.0, cap_s=10.0)


def test_single_losses_cost_no_time() -> None:
    g = guard()
    g.lost(100.0)
    g.lost(100.0)
    assert g.wait_s(100.0) == 0


@given(st.integers(1, 60))
def test_an_outage_waits_longer_but_never_longer_than_the_cap(losses: int) -> None:
    g = guard(free=0)
    for _ in range(losses):
        g.lost(5.0)
    assert min(0.5 * 2 ** min(losses, 3), 5.0) <= g.wait_s(5.0) <= 10.0
    assert g.down_for_s(9.0) == 4.0


def test_a_success_ends_the_outage() -> None:
    g = guard(free=0)
    g.lost(1.0)
    g.succeeded()
    assert (g.wait_s(1.0), g.down_for_s(50.0), g.streak) == (0, 0, 0)
