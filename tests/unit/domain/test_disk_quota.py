"""When to look again at what a sandbox writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.disk_quota import LONGEST_S, SHORTEST_S, next_look_s

_BYTES = st.integers(0, 1 << 40)
_SPEED = st.floats(-1e9, 1e10)


@given(_BYTES, _BYTES, _SPEED)
def test_looks_are_neither_too_frequent_nor_too_rare(used: int, limit: int, speed: float) -> None:
    assert SHORTEST_S <= next_look_s(used, limit, speed) <= LONGEST_S


@given(_BYTES, _BYTES, _BYTES, _SPEED, _SPEED)
def test_more_room_or_less_speed_never_means_an_earlier_look(a: int, b: int, limit: int, x: float, y: float) -> None:
    assert next_look_s(min(a, b), limit, x) >= next_look_s(max(a, b), limit, x)
    assert next_look_s(a, limit, min(x, y)) >= next_look_s(a, limit, max(x, y))


@given(st.integers(1, 1 << 40), st.floats(1.0, 1e10))
def test_one_that_goes_on_as_it_did_is_looked_at_before_it_reaches_its_limit(room: int, speed: float) -> None:
    wait_s = next_look_s(0, room, speed)
    assert wait_s * speed <= room or wait_s == SHORTEST_S


def test_one_that_writes_nothing_is_left_alone() -> None:
    assert next_look_s(5, 10, 0.0) == LONGEST_S
