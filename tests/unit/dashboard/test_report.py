"""The report: one file that holds everything, loads nothing, and escapes what others wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dashboard.frames import metric_frame
from dashboard.report import report_html
from dashboard.snapshots import RunSnapshot
from rock.sdk import EventView, LedgerState, LedgerView, MetricPoint, RunView

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def snapshot(steps: int = 30, *, name: str = "a run", detail: str = "removed", **summary: object) -> RunSnapshot:
    run = RunView(
        id="run-0123456789",
        name=name,
        status="completed",
        recipe={"name": name, "env": {"name": "alfworld"}},
        total_steps=steps,
        step=steps,
        created_at=NOW - timedelta(hours=1),
        updated_at=NOW,
        summary=summary,
    )
    values = {"rollout/success": 0.4, "rollout/reward": 0.4, "rollout/void_rate": 0.0}
    points = {s: MetricPoint(step=s, at=NOW + timedelta(seconds=s), values=values) for s in range(1, steps + 1)}
    ledger = LedgerView(
        run_id=run.id,
        dispatched=12,
        accounts={LedgerState.TRAINED: 11, LedgerState.VOID: 1},
        tokens={},
        sandbox_s={},
        conserved=True,
    )
    events = [EventView(id=1, at=NOW, kind="sandbox.failed", subject="sb-1", detail=detail, run_id=run.id)]
    return RunSnapshot(run, points, metric_frame(points.values()), ledger, events, 0.0)


def test_it_loads_nothing_from_elsewhere() -> None:
    html = report_html(snapshot(), NOW, "http://127.0.0.1:7625")
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", html)
    assert "plotly" in html
    assert html.count("<!doctype html>") == 1


def test_it_says_what_happened_and_where_the_numbers_come_from() -> None:
    html = report_html(snapshot(), NOW, "http://127.0.0.1:7625")
    assert "a run has completed all 30 steps." in html
    assert "1 of 12 episodes void" in html
    assert "made 2026-03-04 12:00 UTC from http://127.0.0.1:7625" in html
    assert "<td>sandbox.failed</td><td>sb-1</td>" in html


def test_lost_time_and_lost_episodes_are_drawn_as_on_the_page() -> None:
    snap = snapshot()
    metrics = snap.metrics.assign(**{"time/step_s": 60.0, "roofline/workers": 2.0, "bubble/total": 0.5})
    html = report_html(replace(snap, metrics=metrics.assign(**{"bubble/tail": 0.5})), NOW, "here")
    assert re.search(r"<h2>Where the time went</h2><span[^>]*>[0-9.]+ worker-\w+; 2 workers: engines and learner", html)
    assert "waiting for the slowest episodes of a batch" in html
    assert html.count("<h2>Where every episode went</h2>") == 1
    assert '"type":"sankey"' in html
    assert "dispatched 12" in html


def test_what_programs_wrote_is_escaped() -> None:
    html = report_html(snapshot(name="<img src=x>", detail="<script>alert(1)</script>"), NOW, "here")
    assert "<script>alert(1)" not in html
    assert "<img src=x>" not in html


def test_a_run_without_a_step_has_a_report_too() -> None:
    assert "No step was reported" in report_html(snapshot(0), NOW, "here")


def test_before_and_after_are_drawn_where_they_were_measured() -> None:
    rate = {"rate": 0.4, "low": 0.3, "high": 0.5, "n": 100}
    with_them = report_html(snapshot(success_before=rate, success_after={**rate, "rate": 0.45}), NOW, "here")
    assert "Before and after" in with_them
    assert "Before and after" not in report_html(snapshot(), NOW, "here")
