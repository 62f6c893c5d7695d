"""Where the time went, what broke and how it ended, what changed: facts in, words and sums out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import changes, latencies, morning_markup, worktime
from dashboard.frames import metric_frame
from dashboard.incidents import VERDICTS, endings, incidents
from dashboard.palette import Tone
from dashboard.sentences import EVENT_WORDS, INCIDENTS, alert_sentence, event_words, incidents_sentence
from dashboard.work_figures import comparison_figure, sankey_figure, waterfall_figure
from rock.sdk import (
    EventView,
    LatencyView,
    MetricPoint,
    NodeView,
    PoolView,
    RunView,
    SandboxSpec,
    SandboxState,
    SandboxView,
)
from rock.wire.models import Evidence

NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
CAUSES = list(worktime.CAUSES)


def event(
    kind: str, subject: str, after_s: float, detail: str = "", node: str = "n1", run_id: str = "run-1"
) -> EventView:
    at = NOW + timedelta(seconds=after_s)
    return EventView(id=int(after_s * 1000), at=at, kind=kind, subject=subject, detail=detail, node=node, run_id=run_id)


def failed(sandbox: str, lease: str = "", **evidence: object) -> SandboxView:
    return SandboxView(
        id=sandbox, state=SandboxState.FAILED, node="n1", runtime="fake", spec=SandboxSpec(image="i"), created_at=NOW,
        changed_at=NOW, lease_id=lease, run_id="run-1", evidence=Evidence(cause="oom", **evidence),
    )  # fmt: skip


def a_run(run_id: str = "run-1", status: str = "training", minutes_ago: float = 0, **changed: object) -> RunView:
    at = NOW - timedelta(minutes=minutes_ago)
    values = {"name": "r", "recipe": {}, "total_steps": 9, "created_at": at, "updated_at": at}
    return RunView(id=run_id, status=status, **{**values, **changed})


shares = st.lists(st.floats(0, 0.19), min_size=len(CAUSES), max_size=len(CAUSES))


@given(st.lists(st.tuples(st.floats(0.1, 100), shares), min_size=1, max_size=20), st.integers(1, 9), st.floats(0, 500))
def test_the_parts_of_the_time_add_up_to_what_was_paid_for(steps, workers, between_s) -> None:
    points, at = [], NOW
    for number, (step_s, parts) in enumerate(steps, start=1):
        at += timedelta(seconds=step_s)
        bubble = {f"bubble/{cause}": share for cause, share in zip(CAUSES, parts, strict=True)}
        values = {"time/step_s": step_s, "roofline/workers": float(workers), "bubble/total": sum(parts), **bubble}
        points.append(MetricPoint(step=number, at=at, values=values))
    spent = worktime.spent(metric_frame(points), NOW - timedelta(seconds=between_s))
    assert spent is not None
    paid_s = sum(s for s, _ in steps) * workers
    outside_s = between_s * workers if between_s * workers > 0.01 * (paid_s + between_s * workers) else 0.0
    assert spent.worker_s == pytest.approx(paid_s + outside_s, rel=1e-3, abs=1e-2)
    assert sum(part.share for part in spent.parts) == pytest.approx(1.0)
    assert [p.tone for p in spent.parts] == [Tone.GOOD] + [Tone.VOID] * (len(spent.parts) - 1)
    figure = waterfall_figure(spent, worktime.Price(2.0), "light")
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(1.0)


def test_without_bubbles_the_learners_time_is_told_and_said_to_be_that() -> None:
    values = {"time/step_s": 10.0, "time/batch_wait_s": 6.0, "time/learner_s": 3.0, "time/publish_wait_s": 0.5}
    spent = worktime.spent(metric_frame([MetricPoint(step=1, at=NOW, values=values)]), NOW)
    assert spent is not None
    assert not spent.of_workers
    assert {p.name: p.worker_s for p in spent.parts} == {
        "learner": 3.0, "wait for a batch": 6.0, "weights": 0.5, "rest of the step": 0.5,
    }  # fmt: skip
    assert worktime.spent(metric_frame([]), NOW) is None


@pytest.mark.parametrize(
    ("said", "price"),
    [
        ("2.50 EUR", worktime.Price(2.5, "EUR")),
        ("€2,5", worktime.Price(2.5, "€")),
        ("3", worktime.Price(3.0)),
        (" ", None),
    ],
)
def test_a_price_is_read_as_people_write_it(said: str, price: worktime.Price | None) -> None:
    assert worktime.parse_price(said) == price


def test_what_is_no_price_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"'cheap'; expected a number and a unit, such as 2\.50 EUR"):
        worktime.parse_price("cheap")
    assert worktime.Price(2.5, "EUR").of(3600 * 3) == "7.50 EUR"


def test_a_lost_sandbox_is_one_incident_from_its_death_to_its_replays_end() -> None:
    story = [
        event("sandbox.failed", "sb-1", 0, "oom: exit code 137"),
        event("lease.recovering", "ls-1", 0.1, "sandbox sb-1: oom: exit code 137"),
        event("lease.rebound", "ls-1", 0.5, "sandbox sb-2 under epoch 2, found in 0.4 s; before: oom"),
        event("lease.recovered", "ls-1", 1.5, "sandbox sb-1 → sb-2: resumed in 1.0 s"),
    ]
    (found,) = incidents(story[::-1], [failed("sb-1", "ls-1", detected_after_s=0.25)])
    assert (found.verdict, found.cause, found.touched) == ("resumed", "oom", 1)
    assert found.detected_s == 0.25
    assert found.recovered_s == pytest.approx(1.5)
    assert [e.kind for e in found.story] == [e.kind for e in story]


@pytest.mark.parametrize(
    ("last", "verdict"),
    [("lease.diverged", "diverged"), ("lease.lost", "lost"), ("lease.rebound", "rebound"), (None, "open")],
)
def test_every_way_a_loss_may_end_has_its_verdict(last: str | None, verdict: str) -> None:
    story = [event("lease.recovering", "ls-1", 0, "sandbox sb-1: guest_lost: gone")]
    if last:
        story.append(event(last, "ls-1", 2, "sandbox sb-1: gone"))
    (found,) = incidents(story)
    assert (found.verdict, found.sandbox, found.touched) == (verdict, "sb-1", 1)


def test_a_second_loss_of_the_same_lease_is_a_second_incident() -> None:
    found = incidents(
        [
            event("lease.recovering", "ls-1", 0, "sandbox sb-1: oom: a"),
            event("lease.recovered", "ls-1", 1),
            event("lease.recovering", "ls-1", 5, "sandbox sb-2: oom: b"),
            event("lease.lost", "ls-1", 7, "sandbox sb-2: nothing to be had"),
        ]
    )
    assert [(i.sandbox, i.verdict) for i in found] == [("sb-2", "lost"), ("sb-1", "resumed")]


def test_moving_a_lease_off_a_draining_node_is_no_incident() -> None:
    moved = [
        event("lease.moving", "ls-1", 0, "sandbox sb-1: drained"),
        event("lease.rebound", "ls-1", 1, "sandbox sb-2"),
    ]
    assert incidents(moved) == []


def test_a_sandbox_that_nobody_held_touched_no_episode() -> None:
    (found,) = incidents([event("sandbox.failed", "sb-1", 0, "oom: exit code 137", run_id="")])
    assert (found.touched, found.verdict) == (0, "replaced")


def test_a_node_that_comes_back_counts_the_leases_it_lost() -> None:
    story = [
        event("node.down", "n1", 0, "runtime silent", run_id=""),
        event("lease.recovering", "ls-1", 1, "sandbox sb-1: node"),
        event("node.up", "n1", 30, run_id=""),
    ]
    by_what = {i.what: i for i in incidents(story)}
    assert (by_what["node n1"].verdict, by_what["node n1"].touched) == ("back", 1)
    assert by_what["node n1"].recovered_s == pytest.approx(30)


kinds = st.sampled_from(
    ["sandbox.failed", "lease.recovering", "lease.moving", "lease.rebound", "lease.recovered", "lease.diverged",
     "lease.lost", "lease.expired", "node.down", "node.up", "quarantine.added", "quarantine.cleared",
     "control.restarted", "guardian.restarted", "node.joined"]
)  # fmt: skip
some_events = st.lists(st.tuples(kinds, st.integers(1, 3), st.integers(0, 60)), max_size=30)


@given(some_events)
def test_whatever_happens_in_whatever_order_every_incident_has_a_verdict_and_no_time_runs_backwards(drawn) -> None:
    events = [event(kind, f"s-{n}", at, f"sandbox sb-{n}: oom: x") for kind, n, at in drawn]
    found = incidents(events)
    assert all(i.verdict in VERDICTS and (i.recovered_s is None or i.recovered_s >= 0) for i in found)
    assert sum(endings(found).values()) == len(found) <= len(events)
    assert len({e.id for i in found for e in i.story} - {e.id for e in events}) == 0


def test_the_sentence_counts_incidents_by_how_they_ended_and_lost_episodes() -> None:
    assert incidents_sentence({"resumed": 2, "lost": 1}, 0, 40) == "3 incidents: 2 resumed, 1 lost. Episodes lost: 0."
    assert incidents_sentence({}, 2, 40) == "No incidents. Episodes lost: 2."


def test_an_incidents_evidence_is_escaped_and_leads_to_its_episodes() -> None:
    evidence = failed("sb-1", "ls-1", last_output=("<script>",), detail="<b>")
    found = incidents([event("sandbox.failed", "sb-1", 0, "oom: <img>")], [evidence])
    html = morning_markup.incident_list(found, lambda at: at.isoformat())
    assert "&lt;script&gt;" in html
    assert "<img" not in html
    assert 'href="episode?run=run-1&amp;find=sb-1"' in html


@pytest.mark.parametrize("kind", ["lease.moving", "guardian.restarted", "control.restarted", "lease.lost"])
def test_events_have_words(kind: str) -> None:
    assert " " in event_words(kind)
    assert "." not in event_words(kind)


def test_every_incident_has_words_and_an_unknown_kind_keeps_its_name() -> None:
    assert set(EVENT_WORDS) >= INCIDENTS
    assert event_words("tape.ran_out") == "tape ran out"


def steps_with(name: str, values: list[float]):
    return metric_frame(
        MetricPoint(step=s, at=NOW + timedelta(seconds=s), values={name: v}) for s, v in enumerate(values, start=1)
    )


def test_the_last_good_step_is_the_last_without_an_alert_or_a_high_void_rate() -> None:
    good = changes.last_good(steps_with("alerts/firing", [0, 1, 0, 0, 2, 1]))
    assert good is not None
    assert (good.step, good.newest, good.now) == (4, 6, False)
    well = changes.last_good(steps_with("rollout/void_rate", [0.5, 0.0]))
    assert well is not None
    assert well.now
    assert changes.last_good(steps_with("alerts/firing", [1, 1])) is None
    assert changes.last_good(metric_frame([])) is None


def test_recipes_are_compared_key_by_key() -> None:
    before = {"learner": {"lr": 1e-5, "kind": "torch"}, "seed": 1}
    after = {"learner": {"lr": 2e-5, "kind": "torch"}, "alpha": 2}
    assert changes.recipe_changes(before, after) == [
        ("alpha", "–", "2"), ("learner.lr", "1e-05", "2e-05"), ("seed", "1", "–"),
    ]  # fmt: skip
    runs = [
        a_run("run-3"),
        a_run("run-2", minutes_ago=5),
        a_run("run-1", minutes_ago=9),
        a_run("x", minutes_ago=1, name="x"),
    ]
    before_it = changes.run_before(runs[0], runs)
    assert before_it is not None
    assert before_it.id == "run-2"


def test_an_alert_is_said_until_it_clears() -> None:
    firing = steps_with("alerts/firing", [0, 1])
    said = alert_sentence(a_run(detail="alert void-rate firing: 7 %, above 5 %"), firing)
    assert said is not None
    assert said.text == "1 alert firing as of step 2: void-rate: 7 %, above 5 %"
    assert alert_sentence(a_run(), steps_with("alerts/firing", [1, 0])) is None
    paused = alert_sentence(a_run(status="paused", detail="Alert x."), firing)
    assert paused is not None
    assert paused.tone is Tone.BAD


def test_latencies_are_held_against_objectives_in_the_order_of_an_episode() -> None:
    measured = [
        LatencyView(env="a", what=what, count=9, p50_s=0.1, p95_s=2.0, p99_s=3.0)
        for what in ("step", "generate", "open", "reset")
    ]
    rows = latencies.against_objectives(measured, {"a": {"open": 1.0, "reset": 5.0, "step": 2.0}})
    assert [(r.what, r.met) for r in rows] == [("open", False), ("reset", True), ("step", True), ("generate", None)]
    assert "missed" in morning_markup.latency_table(rows)


def test_a_node_is_slow_against_the_others_of_its_image() -> None:
    def node(name: str, seconds: float) -> NodeView:
        pool = PoolView(image="i", env="toy", digest="d", target=0, ready=0, starting=0)
        return NodeView(name=name, runtime="fake", healthy=True, capacity=1, pools=(pool,), step_p50_s={"d": seconds})

    rows = latencies.slowest([node("n1", 0.1), node("n2", 0.1), node("n3", 0.4)])
    assert (rows[0].node, rows[0].pool, rows[0].times) == ("n3", "toy", pytest.approx(4.0))


def test_the_sankey_conserves_every_episode() -> None:
    from dashboard.frames import accounts
    from rock.sdk import LedgerState, LedgerView

    counts = {LedgerState.TRAINED: 7, LedgerState.STALE: 2, LedgerState.VOID: 1, LedgerState.IN_FLIGHT: 3}
    ledger = LedgerView(run_id="r", dispatched=13, accounts=counts, tokens={}, sandbox_s={})
    (sankey,) = sankey_figure(accounts(ledger), 13, "dark").data
    flows = list(zip(sankey.link.source, sankey.link.target, sankey.link.value, strict=True))
    assert sum(n for source, _, n in flows if source == 0) == 13
    inner = flows[0][1]
    assert sum(n for source, _, n in flows if source == inner) == flows[0][2] == 9
    nobody = LedgerView(run_id="r", dispatched=1, accounts={LedgerState.IN_FLIGHT: 1}, tokens={}, sandbox_s={})
    (only,) = sankey_figure(accounts(nobody), 1, "light").data
    assert list(only.link.value) == [1]


def test_runs_side_by_side_are_smoothed_alike() -> None:
    series = steps_with("a/x", [0.0, 2.0, 4.0])["a/x"]
    figure = comparison_figure({"one": series, "two": series + 1}, 2, "light")
    drawn = {trace.name: list(trace.y) for trace in figure.data if trace.showlegend is not False}
    assert drawn == {"one": [0.0, 1.0, 3.0], "two": [1.0, 2.0, 4.0]}
