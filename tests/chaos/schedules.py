"""Random schedules, drawn by Hypothesis so that one that fails shrinks to the few actions that matter."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st
from schedule import (
    Abandon,
    Action,
    At,
    BreakDatabase,
    Cancel,
    Cut,
    Fault,
    KillControl,
    KillNode,
    Play,
    Schedule,
    Starts,
    Strike,
    Thaw,
)

_WHICH = st.integers(0, 7)


def _seconds(most: float) -> st.SearchStrategy[float]:
    """In hundredths: short to read, and as good for races as any."""
    return st.integers(0, int(most * 100)).map(lambda hundredths: hundredths / 100)


_PLAYS: st.SearchStrategy[Action] = st.builds(Play, st.integers(1, 8), _seconds(1.0))

_FAULTS: st.SearchStrategy[Action] = st.one_of(
    st.builds(Strike, st.sampled_from(get_args(Fault)), _WHICH),
    st.builds(Cancel, _WHICH),
    st.builds(Abandon, _WHICH),
    st.just(Thaw()),
    st.builds(Starts, _WHICH, _seconds(4.0), st.integers(0, 3), st.booleans()),
    st.builds(Cut, _WHICH, _seconds(15.0)),
    st.builds(KillNode, _WHICH, _seconds(8.0)),
    st.builds(KillControl, _seconds(5.0)),
    st.builds(BreakDatabase, _seconds(5.0), st.booleans()),
)

# As many plays as faults: a fault that meets nobody tests little.
_ACTIONS = st.booleans().flatmap(lambda play: _PLAYS if play else _FAULTS)


def schedules() -> st.SearchStrategy[Schedule]:
    return st.builds(
        Schedule,
        st.lists(st.builds(At, _seconds(3.0), _ACTIONS), min_size=4, max_size=16).map(tuple),
        nodes=st.integers(1, 3),
        pool=st.integers(0, 2),
        seed=st.integers(0, 2**16),
    )
