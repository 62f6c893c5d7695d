"""Wire models become tidy frames, charts and escaped HTML."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import episode_frames, figures, frames, markup, palette
from dashboard.frames import MAX_POINTS, Series
from rock.sdk import (
    EpisodeRecord,
    EventView,
    Evidence,
    LedgerState,
    LedgerView,
    MetricPoint,
    SandboxSpec,
    SandboxState,
    SandboxView,
    TurnRecord,
)

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def a_sandbox(name: str, state=SandboxState.READY, **changes) -> SandboxView:
    values = {
        "id": name,
        "state": state,
        "node": "local",
        "runtime": "docker",
        "spec": SandboxSpec(image="base:1", env="alfworld", network="bridge"),
        "created_at": NOW,
        "changed_at": NOW - timedelta(seconds=30),
    }
    return SandboxView(**{**values, **changes})


def an_episode(**changes) -> EpisodeRecord:
    values = {
        "id": "ep-1",
        "env": "alfworld",
        "task": "t",
        "seed": 1,
        "ledger": LedgerState.TRAINED,
        "outcome": "completed",
        "reward": 1.0,
        "success": True,
        "started_at": NOW,
        "ended_at": NOW + timedelta(seconds=2),
    }
    return EpisodeRecord(**{**values, **changes})


def points(n: int, **series: float) -> pd.DataFrame:
    return frames.metric_frame(
        MetricPoint(step=s, at=NOW + timedelta(seconds=s), values={k.replace("__", "/"): v for k, v in series.items()})
        for s in range(1, n + 1)
    )


def test_states_are_counted_in_the_order_of_life_and_the_dead_left_out():
    states = [SandboxState.LEASED, SandboxState.GONE, SandboxState.STARTING, SandboxState.LEASED, SandboxState.FAILED]
    counted = frames.state_counts(a_sandbox(f"sb-{i}", s) for i, s in enumerate(states))
    assert list(counted.items()) == [(SandboxState.STARTING, 1), (SandboxState.LEASED, 2)]


def test_a_loosened_sandbox_shows_it():
    frame = frames.sandbox_frame([a_sandbox("sb-1")], NOW)
    assert frame.loc[0, "loosened"] == "network=bridge"
    assert frame.loc[0, "for"] == "30 s"


def test_the_filter_wants_every_word_somewhere_and_takes_no_pattern():
    frame = frames.sandbox_frame([a_sandbox("sb-1"), a_sandbox("sb-2", SandboxState.LEASED)], NOW)
    assert list(frames.matching(frame, "ALF sb-2")["sandbox"]) == ["sb-2"]
    assert list(frames.matching(frame, "", ["ready"])["sandbox"]) == ["sb-1"]
    assert frames.matching(frame, "sb-.").empty
    assert len(frames.matching(frame, "  ")) == 2


def test_a_failure_joins_the_events_time_with_the_sandboxes_evidence():
    event_at = NOW - timedelta(minutes=2)
    events = [
        EventView(at=event_at, kind="sandbox.failed", subject="sb-1", detail="oom: exit code 137: limit 512 MiB"),
        EventView(at=NOW, kind="sandbox.failed", subject="sb-0", detail="probe: silent for 6 s"),
        EventView(at=NOW, kind="node.up", subject="local"),
    ]
    evidence = Evidence(cause="oom", detail="limit 512 MiB", exit_code=137, oom_killed=True, last_output=("Killed",))
    found = frames.failures([a_sandbox("sb-1", SandboxState.FAILED, evidence=evidence)], events)
    assert [(f.sandbox, f.cause) for f in found] == [("sb-0", "probe"), ("sb-1", "oom")]
    assert found[0].detail == "silent for 6 s"
    assert found[1].at == event_at
    assert ("killed for memory", "yes") in found[1].evidence


def test_metrics_of_one_step_are_joined_and_the_last_word_wins():
    frame = frames.metric_frame(
        [
            MetricPoint(step=2, at=NOW, values={"a/x": 1.0}),
            MetricPoint(step=1, at=NOW, values={"a/x": 5.0}),
            MetricPoint(step=2, at=NOW, values={"a/x": 2.0, "a/y": 3.0}),
        ]
    )
    assert list(frame.index) == [1, 2]
    assert frame.loc[2, "a/x"] == 2.0
    assert list(frame["a/y"].dropna()) == [3.0]


@given(st.integers(min_value=1, max_value=5000), st.integers(min_value=1, max_value=800))
def test_thinning_keeps_within_the_limit_the_mean_and_the_last_step(n, limit):
    series = pd.Series(range(n), index=pd.RangeIndex(1, n + 1), dtype="float64")
    thinned, k = frames.thin(series, limit)
    assert len(thinned) <= limit
    assert thinned.index[-1] == n
    assert thinned.iloc[0] == pytest.approx(series.iloc[:k].mean())


def test_a_metric_without_a_meaning_keeps_its_name_under_its_area():
    frame = points(3, rollout__success=0.5, learner__loss=1.0, learner__kl=0.1, odd=2.0)
    assert frames.other_metrics(frame) == {"learner": ["learner/kl", "learner/loss"], "odd": ["odd"]}


def test_the_ledger_lists_every_account_and_notices_when_it_does_not_add_up():
    ledger = LedgerView(
        run_id="r", dispatched=10, accounts={LedgerState.TRAINED: 8, LedgerState.VOID: 1}, tokens={}, sandbox_s={}
    )
    booked = frames.accounts(ledger)
    assert {a.state for a in booked} == set(LedgerState)
    assert booked[0].share == pytest.approx(0.8)
    assert frames.unbalanced(ledger) == 1


def test_before_and_after_need_well_formed_intervals():
    good = {"rate": 0.2, "low": 0.1, "high": 0.3, "n": 200}
    assert [i.label for i in frames.before_after({"success_before": good, "success_after": good})] == [
        "before RL",
        "after RL",
    ]
    assert [i.n for i in frames.before_after({"success_before": {**good, "n": 200.0}})] == [200]
    assert frames.before_after({"success_before": {"rate": 0.2}, "success_after": "61%"}) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "success"),
        ({"success": False}, "failure"),
        ({"outcome": "truncated", "success": False}, "truncated"),
        ({"outcome": "truncated", "success": True}, "success"),
        ({"outcome": "void", "success": None, "reward": None}, "void"),
        ({"success": None}, "completed"),
    ],
)
def test_an_episodes_end_in_one_word(changes, word):
    assert episode_frames.ending(an_episode(**changes)) == word


def test_empty_answers_make_empty_frames_with_their_columns():
    assert list(frames.sandbox_frame([], NOW).columns) == frames.SANDBOX_COLUMNS
    assert list(episode_frames.episode_frame([], NOW).columns) == episode_frames.EPISODE_COLUMNS
    assert frames.event_frame([], NOW).empty
    assert episode_frames.turn_frame([]).empty
    assert frames.metric_frame([]).empty


# --- figures ---------------------------------------------------------------------------------------------------------


def names(figure) -> list[str]:
    return [t.name for t in figure.data if t.name]


def test_success_reward_and_void_rate_share_one_axis():
    frame = points(50, rollout__success=0.5, rollout__reward=0.4, rollout__void_rate=0.01)
    figure = figures.outcome_figure(frame, "dark")
    assert names(figure) == ["success rate", "mean reward", "void rate"]
    assert {t.yaxis for t in figure.data} == {None}
    assert figure.layout.yaxis.range == (-0.02, 1.02)
    void = next(t for t in figure.data if t.name == "void rate")
    assert void.line.color == palette.COLOURS["dark"][palette.Tone.VOID]


def test_a_reward_that_is_the_success_is_drawn_once_and_one_beyond_1_opens_the_axis():
    same = figures.outcome_figure(points(5, rollout__success=0.5, rollout__reward=0.5), "light")
    assert names(same) == ["success rate"]
    far = figures.outcome_figure(points(5, rollout__success=0.5, rollout__reward=-3.0), "light")
    assert far.layout.yaxis.range is None


def test_a_long_run_draws_no_more_points_than_a_screen_has():
    figure = figures.outcome_figure(points(5000, rollout__success=0.5), "light")
    assert max(len(t.x) for t in figure.data) <= MAX_POINTS
    assert figure.data[-1].x[-1] == 5000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_draws_one_point_and_none(theme):
    for frame in (points(0), points(1, staleness__mean=1.0, staleness__max=2.0, rollout__tokens_per_s=5.0)):
        for draw in (
            figures.outcome_figure,
            figures.tokens_figure,
            figures.staleness_figure,
            figures.staleness_histogram,
        ):
            assert draw(frame, theme).to_json()
    assert figures.interval_figure([frames.Interval("after RL", 0.6, 0.5, 0.7, 200)], theme).to_json()
    turns = episode_frames.turn_frame([TurnRecord(observation="o", response="r", action="a")])
    assert figures.turn_figure(turns, theme).to_json()
    assert figures.logprob_figure(turns, theme).to_json()


def test_every_meaning_has_a_colour_in_both_themes():
    for theme in ("light", "dark"):
        assert set(palette.COLOURS[theme]) == set(palette.Tone)
    assert set(palette.SANDBOX_TONES) == set(SandboxState)
    assert set(palette.LEDGER_TONES) == set(LedgerState)
    assert Series.SUCCESS.of(points(0)).empty


# --- HTML ------------------------------------------------------------------------------------------------------------

EVIL = '</pre><script>alert("x")</script><img src=x onerror=alert(1)>'


def test_nothing_from_the_platform_becomes_markup():
    turn = TurnRecord(observation=EVIL * 60, response=f"<think>{EVIL}", action=EVIL)
    failure = frames.Failure(NOW, EVIL, EVIL, EVIL, EVIL, EVIL, ((EVIL, EVIL),), (EVIL,))
    episode = an_episode(outcome="void", reward=None, success=None, reason=EVIL)
    made = [
        markup.turn_card(1, turn),
        markup.failure_item(failure, EVIL),
        markup.episode_banner(episode),
        markup.facts([(EVIL, EVIL)]),
        markup.empty(EVIL, EVIL, [EVIL]),
        markup.tiles([(EVIL, EVIL, EVIL, None)]),
    ]
    for fragment in made:
        assert "<script" not in fragment
        assert "<img" not in fragment


def test_new_weights_in_the_middle_of_an_episode_are_marked():
    turn = TurnRecord(observation="o", response="r", action="a", policy_version=4)
    assert "new weights" in markup.turn_card(2, turn, previous_version=3)
    assert "new weights" not in markup.turn_card(2, turn, previous_version=4)
    assert "new weights" not in markup.turn_card(1, turn)


def test_a_void_episode_says_that_it_has_no_reward():
    said = markup.episode_banner(an_episode(outcome="void", reward=None, success=None, reason="sandbox_lost"))
    assert "never trained on" in said
    assert "sandbox_lost" in said


def test_the_staleness_histogram_stacks_the_ages_that_occur():
    metrics = points(5, staleness__at_0=0.5, staleness__at_1=0.5, staleness__at_2=0.0)
    figure = figures.staleness_histogram(metrics, "light")
    assert [trace.name for trace in figure.data] == ["fresh", "1 behind"]
    assert {trace.stackgroup for trace in figure.data} == {"share"}
    assert "staleness" not in frames.other_metrics(metrics)
