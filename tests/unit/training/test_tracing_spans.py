"""Spans of an episode lie where its times say, whatever they are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rock.domain.outcome import Completed, LedgerState, Truncated, Void, VoidCause
from roll_core.training.tracing_spans import Ending, Span, episode_spans, sampled, trace_id
from roll_core.types import Generation, Trajectory, Turn

BEGAN_S = 1_700_000_000.0
lengths_s = st.floats(0, 1e4)
outcomes = st.sampled_from(
    [Completed(1.0, True), Truncated("turns", 0.5), Void(VoidCause.SANDBOX_LOST, "it was killed")]
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    turns = tuple(
        Turn((1, 2), Generation((3,), (-0.5,), (4,), "stop"), "seen", "said", "did", generate_s=g, env_s=e)
        for g, e in draw(st.lists(st.tuples(lengths_s, lengths_s), max_size=4))
    )
    open_s, reset_s, rest_s = draw(lengths_s), draw(lengths_s), draw(st.floats(-100, 100))
    spent_s = open_s + reset_s + sum(t.generate_s + t.env_s for t in turns)
    return Trajectory(
        "ep-1", "g-1", "e", "t", 7, 4, turns, draw(outcomes), started_at_s=BEGAN_S, open_s=open_s, reset_s=reset_s,
        ended_at_s=BEGAN_S + spent_s + rest_s,
    )  # fmt: skip


@st.composite
def endings(draw: st.DrawFn, trajectory: Trajectory) -> Ending:
    booked_s = trajectory.ended_at_s + draw(st.floats(-10, 1e4))
    published_s = draw(st.none() | st.floats(-10, 1e4).map(lambda s: booked_s + s))
    learner_s = draw(st.none() | lengths_s)
    return Ending(draw(st.sampled_from(LedgerState)), 5, booked_s, learner_s, draw(lengths_s), published_s)


@given(st.data())
def test_every_part_lies_within_the_episode_and_none_ends_before_it_begins(data: st.DataObject) -> None:
    trajectory = data.draw(trajectories())
    whole, *parts = episode_spans(trajectory, data.draw(endings(trajectory)))
    assert whole.start_s == BEGAN_S
    assert all(whole.start_s <= p.start_s <= p.end_s <= whole.end_s for p in parts)


@given(trajectories())
def test_rollout_follows_in_order_and_is_as_long_as_was_measured(trajectory: Trajectory) -> None:
    broken = replace(trajectory, outcome=Void(VoidCause.DEADLINE))  # so that nothing follows
    _, *parts = episode_spans(broken, Ending(LedgerState.VOID, 5, trajectory.ended_at_s))
    assert all(before.end_s == after.start_s for before, after in pairwise(parts))
    measured = [s for s in (trajectory.open_s, trajectory.reset_s) if s > 0]
    measured += [s for turn in trajectory.turns for s in (turn.generate_s, turn.env_s)]
    assert [p.end_s - p.start_s for p in parts[:-1]] == pytest.approx(measured, abs=1e-5)  # of 1.7e9 seconds
    assert parts[-1].name == "give back"


def played() -> Trajectory:
    turn = Turn((1,), Generation((2,), (-1.0,), (4,), "stop"), "seen", "said", "did", generate_s=2.0, env_s=1.0)
    return Trajectory(
        "ep-1", "g-1", "e", "t", 7, 4, (turn, turn), Completed(1.0, True),
        started_at_s=BEGAN_S, open_s=0.5, reset_s=0.5, ended_at_s=BEGAN_S + 8,
    )  # fmt: skip


def after(spans: tuple[Span, ...], name: str) -> tuple[float, float]:
    (span,) = [s for s in spans if s.name == name]
    return span.start_s - BEGAN_S, span.end_s - BEGAN_S


def test_a_trained_episode_leads_from_its_prompt_to_the_weights_it_made() -> None:
    ending = Ending(LedgerState.TRAINED, 5, BEGAN_S + 20, learner_s=6, publish_wait_s=1, published_at_s=BEGAN_S + 21)
    spans = episode_spans(played(), ending)
    names = ["open", "reset", *["generate", "step"] * 2, "give back", "buffer", "learner step", "publish wait"]
    assert [s.name for s in spans] == ["episode", *names, "publish"]
    places = {name: after(spans, name) for name in ("episode", "give back", "buffer", "learner step", "publish")}
    assert places == {
        "episode": (0, 21), "give back": (7, 8), "buffer": (8, 13), "learner step": (13, 19), "publish": (20, 21)
    }  # fmt: skip


def test_what_was_not_trained_on_waits_in_the_buffer_until_it_is_booked() -> None:
    spans = episode_spans(played(), Ending(LedgerState.STALE, 5, BEGAN_S + 30))
    assert after(spans, "buffer") == (8, 30)
    assert not {"learner step", "publish"} & {s.name for s in spans}


def test_a_void_episode_is_an_error_with_its_cause_and_carries_no_reward() -> None:
    broken = replace(played(), outcome=Void(VoidCause.SANDBOX_LOST, "OOM"))
    whole = episode_spans(broken, Ending(LedgerState.VOID, 5, BEGAN_S + 8))[0]
    assert whole.error == "sandbox_lost: OOM"
    assert "rock.reward" not in whole.attributes


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_every_episode_of_a_smaller_one(one: float, other: float) -> None:
    small, large = sorted((one, other))
    episodes = [f"ep-{i}" for i in range(40)]
    assert {e for e in episodes if sampled("run", e, small)} <= {e for e in episodes if sampled("run", e, large)}
    assert all(sampled("run", e, 1.0) and not sampled("run", e, 0.0) for e in episodes)


def test_about_the_share_asked_for_is_sampled() -> None:
    count = sum(sampled("run", f"ep-{i}", 0.1) for i in range(10_000))
    assert 850 < count < 1150  # five standard deviations


def test_a_trace_is_found_by_run_and_episode() -> None:
    ids = {trace_id(run, f"ep-{i}") for run in ("a", "b") for i in range(100)}
    assert len(ids) == 200
    assert trace_id("a", "ep-0") == trace_id("a", "ep-0") in ids
