"""Run: is it healthy, is the curve real, where did the episodes go."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard import figures, frames, markup, snapshots, text
from dashboard.app import common
from dashboard.frames import MAX_POINTS, NOW_STEPS, Series
from dashboard.palette import Theme, Tone
from dashboard.sentences import ACTIVE, PACE_STEPS, VOID_WORRIES, RunFacts, run_facts, run_sentence
from dashboard.snapshots import RunSnapshot

COLUMNS = 3  # of small charts
AREAS_SHOWN = frozenset({"learner", "critic", "loss"})


def page() -> None:
    live()


@st.fragment(run_every=common.LIVE_S)
def live() -> None:
    listed = common.runs()
    if listed.value is None:
        common.no_platform(listed)
        return
    if not listed.value:
        common.show_banner(listed, None, "")
        common.no_runs()
        return
    run_id = common.choose_run(listed.value).id
    reading = common.source().read(
        ("run", run_id), lambda rock, previous: snapshots.run_snapshot(rock, run_id, previous)
    )
    if reading.value is None:
        common.show_banner(reading, None, "")
        return
    now = common.now()
    snap = reading.value
    facts = run_facts(snap.run, snap.metrics, snap.ledger, snap.events, now)
    note = common.source_note(
        reading, f"last word of the trainer {text.ago(facts.heard_at, now)}", snap.run.id, snap.run.detail
    )
    common.show_banner(reading, run_sentence(snap.run, facts), note)
    st.html(_tiles(facts, active=snap.run.status in ACTIVE))
    _measured(snap)
    _curves(snap)
    _ledger(snap)
    _others(snap.metrics)
    with st.expander("Recipe", expanded=False):
        st.json(snap.run.recipe, expanded=2)


def _tiles(facts: RunFacts, *, active: bool) -> str:
    window = f"mean of the last {NOW_STEPS} steps"
    worried = facts.void_rate is not None and facts.void_rate > VOID_WORRIES
    total = f" of {facts.total_steps:,}" if facts.total_steps else ""
    return markup.tiles(
        [
            ("step", f"{facts.step:,}", f"{total.strip() or 'no end set'}, {text.duration(facts.step_s)} each", None),
            ("success", text.percent(facts.success), window, Tone.GOOD if facts.success is not None else None),
            ("reward", text.number(facts.reward), window, None),
            (
                "void",
                text.percent(facts.void_rate, 1),
                f"{facts.voids:,} of {text.plural(facts.episodes, 'episode')}",
                Tone.VOID if worried else None,
            ),
            ("tokens/s", text.number(facts.tokens_per_s), window, None),
            ("staleness", text.number(facts.staleness, 2), f"versions, max {text.number(facts.staleness_max)}", None),
            ("time left", text.duration(facts.left_s), f"from the last {PACE_STEPS} steps", None)
            if facts.left_s is not None
            else ("took so far" if active else "took", text.duration(facts.took_s), "from its creation on", None),
        ]
    )


def _measured(snap: RunSnapshot) -> None:
    measured = frames.before_after(snap.run.summary)
    if not measured:
        return
    counts = " and ".join(f"{i.n:,}" for i in measured)
    st.html(markup.heading("Before and after", f"held-out games, 95% intervals, n = {counts}"))
    common.chart(figures.interval_figure(measured, common.theme()), "measured")


def _curves(snap: RunSnapshot) -> None:
    metrics = snap.metrics
    if metrics.empty:
        st.html(
            markup.empty(
                "No step has been reported yet",
                "The first one comes after warm start and the first batch of episodes; this page is waiting for it.",
            )
        )
        return
    st.html(markup.heading("Success, reward and void rate", _window(len(metrics))))
    common.chart(figures.outcome_figure(metrics, common.theme()), "outcome")
    left, right = st.columns(2, gap="medium")
    with left:
        _one(
            "Tokens per second",
            "generated, as the trainer reports them",
            Series.TOKENS_PER_S,
            metrics,
            figures.tokens_figure,
        )
    with right:
        note = "policy versions between sampling and training"
        _one("Staleness", note, Series.STALENESS_MEAN, metrics, figures.staleness_figure)
    if Series.STALENESS_AT_0.column(metrics) is not None:
        note = "share of each batch's samples by the versions between their start and their training"
        _one("Age of what was trained on", note, Series.STALENESS_AT_0, metrics, figures.staleness_histogram)


def _window(points: int) -> str:
    """What the lines of a chart with this many points are."""
    parts = ["training episodes of each step"]
    if points >= figures.SMOOTH_FROM:
        parts.append(f"bold: mean of {NOW_STEPS} steps")
    if points > MAX_POINTS:
        parts.append(f"one point is the mean of {-(-points // MAX_POINTS)} steps")
    return "; ".join(parts)


def _one(
    title: str, note: str, series: Series, metrics: pd.DataFrame, draw: Callable[[pd.DataFrame, Theme], go.Figure]
) -> None:
    st.html(markup.heading(title, note))
    if series.column(metrics) is None:
        st.html(markup.empty("Not reported", f"This run reports no {series.value[0]}."))
        return
    common.chart(draw(metrics, common.theme()), series.name)


def _ledger(snap: RunSnapshot) -> None:
    ledger = snap.ledger
    st.html(markup.heading("Where every episode went", "the whole run, from the platform's ledger"))
    if not ledger.dispatched:
        st.html(markup.empty("No episode dispatched yet", "Each one is booked here exactly once when it ends."))
        return
    off = frames.unbalanced(ledger)
    if off:
        st.error(f"The accounts do not add up: {off:+,} episodes unaccounted for. Please report this.")
    st.html(markup.ledger_table(frames.accounts(ledger), ledger.dispatched))


def _others(metrics: pd.DataFrame) -> None:
    """Whatever else the trainer reports: the learner's curves, the rest when asked for."""
    areas = frames.other_metrics(metrics)
    for area in sorted(set(areas) & AREAS_SHOWN):
        _area(area, areas.pop(area), metrics)
    singles = frames.single_values(metrics)
    if singles:
        st.html(markup.heading("Reported once"))
        st.html(markup.facts((f"{_title(n)}, step {step}", text.number(value)) for n, value, step in singles))
    if areas and st.toggle(f"Show {', '.join(sorted(areas))}", key="run_more"):
        for area in sorted(areas):
            _area(area, areas[area], metrics)


def _area(area: str, names: list[str], metrics: pd.DataFrame) -> None:
    st.html(markup.heading(_title(area).capitalize(), "each step, as the trainer reports it"))
    for start in range(0, len(names), COLUMNS):
        for column, name in zip(st.columns(COLUMNS, gap="small"), names[start : start + COLUMNS], strict=False):
            with column:
                common.chart(figures.metric_figure(metrics, name, common.theme()), name)


def _title(name: str) -> str:
    return name.replace("_", " ").replace("/", ": ")
