"""Numbers and times as people read them; the sentences at the top of the pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import text
from dashboard.frames import metric_frame
from dashboard.palette import Tone
from dashboard.sentences import fleet_sentence, pace, run_facts, run_sentence, staleness_sentence
from dashboard.source import Reading
from rock.sdk import (
    EventView,
    LedgerState,
    LedgerView,
    MetricPoint,
    NodeView,
    PlatformUnavailable,
    RunView,
    SandboxSpec,
    SandboxState,
    SandboxView,
    StorageError,
)

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (0.004, "4 ms"),
        (2.34, "2.3 s"),
        (45, "45 s"),
        (360, "6 min"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, said):
    assert text.duration(seconds) == said


@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_always_has_a_unit_and_is_short(seconds):
    said = text.duration(seconds)
    assert len(said) <= 14
    assert said.split()[-1] in {"ms", "s", "min", "h", "d"}


@given(st.floats(min_value=1e-12, max_value=1))
def test_a_share_that_is_not_zero_never_reads_as_zero(share):
    assert text.percent(share) not in {"0%", "0.0%"}


@given(st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_share_that_is_not_everything_never_reads_as_everything(share):
    assert text.percent(share) != "100%"


def test_numbers_keep_what_means_something():
    assert [text.number(x) for x in (0.55432, 12, 1879.3, 57_788, 123_456, 2_500_000, None, float("nan"))] == [
        "0.554",
        "12",
        "1,879",
        "57,788",
        "123k",
        "2.5M",
        "–",
        "–",
    ]


def test_times_are_utc_and_carry_the_date_when_it_is_another_day():
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert text.clock(elsewhere) == "12:00:00 UTC"
    assert text.clock(NOW - timedelta(days=1), NOW) == "03 Mar 12:00:00 UTC"


# --- runs ------------------------------------------------------------------------------------------------------------


def a_run(**changes) -> RunView:
    values = {
        "id": "run-1",
        "name": "tiny",
        "status": "training",
        "recipe": {},
        "total_steps": 200,
        "step": 100,
        "created_at": NOW - timedelta(minutes=10),
        "updated_at": NOW - timedelta(seconds=3),
    }
    return RunView(**{**values, **changes})


def metrics(steps=100, step_s=5.0, last=NOW) -> pd.DataFrame:
    return metric_frame(
        MetricPoint(
            step=s,
            at=last - timedelta(seconds=step_s * (steps - s)),
            values={"rollout/success": 0.2 + 0.4 * s / steps, "rollout/reward": 0.5},
        )
        for s in range(1, steps + 1)
    )


def a_ledger(void=3, trained=297, in_flight=8) -> LedgerView:
    accounts = {LedgerState.VOID: void, LedgerState.TRAINED: trained, LedgerState.IN_FLIGHT: in_flight}
    return LedgerView(run_id="run-1", dispatched=sum(accounts.values()), accounts=accounts, tokens={}, sandbox_s={})


def say(run, frame, ledger=None, events=()):
    return run_sentence(run, run_facts(run, frame, ledger, events, NOW))


def test_a_healthy_run_says_step_success_voids_time_left_and_incidents():
    said = say(a_run(), metrics(), a_ledger())
    assert said.tone is Tone.GOOD
    assert said.text == (
        "tiny is training: step 100 of 200. Success 58% over the last 10 steps, 22% over the first. "
        "3 of 300 episodes void (1.0%), none trained on. About 8 min left at the present pace. No incidents."
    )


def test_a_silent_trainer_is_not_called_training():
    old = NOW - timedelta(minutes=9)
    said = say(a_run(updated_at=old), metrics(last=old), a_ledger())
    assert said.tone is Tone.VOID
    assert said.text.startswith(
        "tiny has said nothing for 9 min (last at 11:51:00 UTC, while training: step 100 of 200)."
    )
    assert "left at the present pace" not in said.text


def test_a_slow_run_is_given_its_own_pace_before_it_counts_as_silent():
    old = NOW - timedelta(minutes=9)
    said = say(a_run(updated_at=old), metrics(step_s=120, last=old), a_ledger())
    assert said.text.startswith("tiny is training")


def test_many_void_episodes_colour_the_sentence():
    assert say(a_run(), metrics(), a_ledger(void=30)).tone is Tone.VOID


def test_a_finished_run_compares_before_and_after_and_admits_overlap():
    def summary(low_after):
        return {
            "success_before": {"rate": 0.24, "low": 0.18, "high": 0.31, "n": 200},
            "success_after": {"rate": 0.4, "low": low_after, "high": 0.47, "n": 200},
        }

    clear = say(a_run(status="completed", step=200, summary=summary(0.33)), metrics(200), a_ledger())
    assert clear.text.startswith(
        "tiny has completed all 200 steps. Held-out success went from 24% to 40% (+16 points)."
    )
    overlapping = say(a_run(status="completed", step=200, summary=summary(0.3)), metrics(200), a_ledger())
    assert "(+16 points; the 95% intervals overlap)" in overlapping.text


def test_an_incident_is_named_with_its_time_and_whether_the_run_went_on():
    lost = EventView(at=NOW - timedelta(minutes=1), kind="sandbox.failed", subject="sb-1", detail="oom")
    ready = EventView(at=NOW, kind="node.up", subject="local")
    said = say(a_run(), metrics(), a_ledger(), [lost, ready])
    assert said.text.endswith("1 incident, at 11:59:00 UTC (a sandbox failed: oom). The run went on.")


def test_a_failed_run_gives_the_trainers_reason():
    said = say(a_run(status="failed", detail="loss is not finite"), metrics(), a_ledger())
    assert said.tone is Tone.BAD
    assert "has failed: step 100 of 200. loss is not finite." in said.text


def test_a_run_without_any_number_makes_no_claims():
    run = a_run(status="starting", step=0, total_steps=0)
    assert say(run, metric_frame([]), None).text == "tiny is starting."


def test_pace_ignores_one_long_pause():
    frame = metrics(30)
    frame.loc[frame.index >= 25, "at"] += timedelta(minutes=30)
    assert pace(frame) == pytest.approx(5.0)


# --- fleet and staleness ---------------------------------------------------------------------------------------------


def a_sandbox(i: int, state: SandboxState) -> SandboxView:
    return SandboxView(
        id=f"sb-{i}",
        state=state,
        node="local",
        runtime="fake",
        spec=SandboxSpec(image="x"),
        created_at=NOW,
        changed_at=NOW,
    )


def a_node(name="local", healthy=True) -> NodeView:
    return NodeView(name=name, runtime="fake", healthy=healthy, capacity=8)


def test_the_fleet_in_one_sentence():
    sandboxes = [a_sandbox(i, SandboxState.LEASED) for i in range(3)] + [a_sandbox(9, SandboxState.READY)]
    said = fleet_sentence(None, [a_node()], sandboxes, 0, "the last hour")
    assert said.text == "1 node up; 4 sandboxes alive; 3 at work, 1 ready; no failure in the last hour."
    assert said.tone is Tone.GOOD


def test_an_unhealthy_node_and_a_silent_sandbox_show():
    sick = fleet_sentence(None, [a_node(), a_node("b", healthy=False)], [], 2, "the last hour")
    assert sick.tone is Tone.BAD
    assert sick.text.startswith("1 of 2 nodes unhealthy (b)")
    suspect = fleet_sentence(None, [a_node()], [a_sandbox(1, SandboxState.SUSPECT)], 0, "the last hour")
    assert suspect.tone is Tone.VOID
    assert "1 not answering" in suspect.text
    assert fleet_sentence(None, [], [], 0, "the last hour").tone is Tone.BAD


def test_staleness_says_since_when_and_how_old_the_data_is():
    at, since = NOW - timedelta(seconds=55), NOW - timedelta(seconds=50)
    gone = PlatformUnavailable("no answer")
    said = staleness_sentence(Reading("x", at, gone, since), "http://h", NOW)
    assert said is not None
    assert said.text == "Platform unreachable since 11:59:10 UTC. What you see is the last data, of 11:59:05 UTC."
    never = staleness_sentence(Reading(None, None, gone, since), "http://h:1", NOW)
    assert never is not None
    assert never.text == "No platform answers at http://h:1 since 11:59:10 UTC."
    nowhere = PlatformUnavailable("No platform runs from /x.", hint="Start it.")
    never = staleness_sentence(Reading(None, None, nowhere, since), "", NOW)
    assert never is not None
    assert never.text == "No platform runs from /x since 11:59:10 UTC."
    refused = staleness_sentence(Reading("x", at, StorageError("disk full"), since), "http://h", NOW)
    assert refused is not None
    assert "disk full" in refused.text
    assert staleness_sentence(Reading("x", at), "http://h", NOW) is None
