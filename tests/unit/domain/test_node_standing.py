"""A node's standing: only the ways of the table, dead only after a silence that was not our own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.nodes import MEANING, TRANSITIONS, WORDS, HeartbeatPolicy, NodeHealth, NodeStanding

_S = NodeStanding
POLICY = HeartbeatPolicy()

Step = tuple[str, float]

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["answer", "miss", "starve", "return", "rejoin", "cordon", "drain", "uncordon", "eject", "wait"]
        ),
        st.floats(0.01, 5.0),
    ),
    max_size=60,
)


def act(health: NodeHealth, step: str, now: float, passed_s: float) -> None:
    actions: dict[str, Callable[[], None]] = {
        "answer": lambda: health.answered(now),
        "miss": lambda: health.missed(now),
        "starve": lambda: health.missed(now, passed_s),
        "return": health.returned,
        "rejoin": lambda: health.rejoined(now),
        "cordon": lambda: health.say(_S.CORDONED),
        "drain": lambda: health.say(_S.DRAINING),
        "uncordon": lambda: health.say(None),
        "eject": lambda: health.eject(now + 3.0),
        "wait": lambda: None,
    }
    actions[step]()


@given(steps)
def test_a_node_goes_only_ways_that_are_in_the_table(script: list[Step]) -> None:
    now, health = 0.0, NodeHealth(0.0)
    before = health.standing(now)
    for step, passed_s in script:
        now += passed_s
        middle = health.standing(now)  # an ejection may have ended with the time alone
        assert middle is before or middle in TRANSITIONS[before]
        act(health, step, now, passed_s)
        after = health.standing(now)
        assert after is middle or after in TRANSITIONS[middle], (step, middle, after)
        if middle is _S.DEAD and after is not _S.DEAD:
            assert step == "rejoin"
        if after is _S.UP:
            assert not health.must_rejoin
            assert health.word is None
        before = after


@given(steps)
def test_dead_means_silent_for_long_while_control_was_awake(script: list[Step]) -> None:
    now, health = 0.0, NodeHealth(0.0)
    awake_silence_s, misses = 0.0, 0
    for step, passed_s in script:
        now += passed_s
        if step != "starve":
            awake_silence_s += passed_s
        dead_before = health.dead
        act(health, step, now, passed_s)
        if step in ("miss", "starve"):
            misses += 1
            if health.dead and not dead_before:
                assert misses >= POLICY.dead_after_misses
                assert awake_silence_s >= POLICY.dead_after_s - 1e-6
        elif step in ("answer", "rejoin"):
            awake_silence_s, misses = 0.0, 0


def test_a_node_that_goes_silent_is_dead_within_five_seconds() -> None:
    health = NodeHealth(0.0)
    cut_at = 0.001  # right after it answered
    for look in range(1, 6):
        health.missed(look * POLICY.interval_s + 0.05)
        if health.dead:
            assert look * POLICY.interval_s + 0.05 - cut_at <= 5.0
            return
    raise AssertionError("never dead")


def test_a_control_that_did_not_run_blames_nobody() -> None:
    health = NodeHealth(0.0)
    for minute in range(1, 10):
        health.missed(minute * 60.0, starved_s=60.0)
    assert health.standing(540.0) is _S.SUSPECT
    health.answered(541.0)
    assert health.standing(541.0) is _S.UP


def test_what_an_operator_said_outlives_a_death() -> None:
    health = NodeHealth(0.0)
    health.say(_S.DRAINING)
    for second in range(1, 6):
        health.missed(float(second))
    assert health.standing(6.0) is _S.DEAD
    health.answered(7.0)
    assert health.standing(7.0) is _S.DEAD  # an answer alone does not make it ours again
    health.rejoined(8.0)
    assert health.standing(8.0) is _S.DRAINING


def test_every_standing_has_its_sentence_and_its_ways() -> None:
    assert set(MEANING) == set(TRANSITIONS) == set(NodeStanding)
    assert set(NodeStanding) > WORDS
    with pytest.raises(ValueError, match="cannot say"):
        NodeHealth(0.0).say(_S.DEAD)
