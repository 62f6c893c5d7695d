"""Restart intensity: N failures within the window are borne, one more is too many; old ones are forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.intensity import Intensity, IntensityPolicy


def test_three_within_a_minute_are_borne_and_the_fourth_is_not() -> None:
    intensity = Intensity()
    assert [intensity.failed(now) for now in (0, 10, 20, 30)] == [False, False, False, True]


def test_what_fails_slowly_never_escalates() -> None:
    intensity = Intensity(IntensityPolicy(max_failures=3, window_s=60))
    assert not any(intensity.failed(20.0 * n) for n in range(100))


def test_after_a_reset_it_starts_anew() -> None:
    intensity = Intensity(IntensityPolicy(max_failures=0))
    assert intensity.failed(1)
    intensity.reset()
    assert not intensity.exceeded(1)


@given(
    st.lists(st.floats(0, 30), max_size=60),
    st.integers(0, 5),
    st.floats(0.5, 100),
)
def test_it_escalates_exactly_when_the_window_holds_more_than_the_policy_allows(
    gaps: list[float], most: int, window_s: float
) -> None:
    intensity, failed_at, now = Intensity(IntensityPolicy(most, window_s)), [], 0.0
    for gap in gaps:
        now += gap
        failed_at.append(now)
        within = sum(1 for at in failed_at if now - at < window_s)
        assert intensity.failed(now) == (within > most)
        assert intensity.count(now) == min(within, most + 1)


@pytest.mark.parametrize(("most", "window_s"), [(-1, 60.0), (3, 0.0)])
def test_a_senseless_policy_is_refused(most: int, window_s: float) -> None:
    with pytest.raises(ValueError, match="restart intensity needs"):
        IntensityPolicy(most, window_s)
