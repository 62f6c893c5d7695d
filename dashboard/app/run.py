"""Run: is it healthy, is the curve real, where did the episodes go."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard import figures, frames, markup, text, work_figures
from dashboard.app import common
from dashboard.frames import Series
from dashboard.palette import Theme
from dashboard.sentences import ACTIVE, run_facts, run_sentence
from dashboard.snapshots import RunSnapshot
from dashboard.tiles import outcome_window, run_tiles

COLUMNS = 3  # of small charts
AREAS_SHOWN = frozenset({"learner", "critic", "loss"})


def page() -> None:
    live()


@st.fragment(run_every=common.LIVE_S)
def live() -> None:
    chosen = common.chosen_run()
    if chosen is None:
        return
    reading = common.ask_run(chosen[0])
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
    st.html(run_tiles(facts, active=snap.run.status in ACTIVE))
    _measured(snap)
    _curves(snap)
    _work(snap.metrics)
    _ledger(snap)
    _others(snap.metrics)
    with st.expander("Recipe", expanded=False):
        st.json(snap.run.recipe, expanded=2)


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
    st.html(markup.heading("Success, reward and void rate", outcome_window(len(metrics))))
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


def _work(metrics: pd.DataFrame) -> None:
    """How near to the best these workers could do, and how far the engine's numbers are from the learner's."""
    if "roofline/efficiency" in metrics.columns:
        left, right = st.columns(2, gap="medium")
        with left:
            st.html(markup.heading("Efficiency and bubble", "shares of the workers' time, each step"))
            common.chart(work_figures.roofline_figure(metrics, common.theme()), "roofline")
        with right:
            st.html(markup.heading("A step against its roofline", "T*: all its tokens on busy workers, and the sync"))
            common.chart(work_figures.step_time_figure(metrics, common.theme()), "step-time")
    if "mismatch/k3" in metrics.columns:
        left, right = st.columns(2, gap="medium")
        with left:
            alarm = metrics["mismatch/alarm"].dropna() if "mismatch/alarm" in metrics.columns else None
            raised = "; the drift alarm is raised" if alarm is not None and alarm.tail(1).any() else ""
            st.html(markup.heading("Mismatch of engine and learner", f"KL per token (k3), before the update{raised}"))
            common.chart(work_figures.mismatch_figure(metrics, common.theme()), "mismatch")
        with right:
            st.html(markup.heading("What the mismatch costs", "share of samples that count; of tokens clipped"))
            common.chart(work_figures.weighting_figure(metrics, common.theme()), "weighting")


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
    accounts = frames.accounts(ledger)
    common.chart(work_figures.sankey_figure(accounts, ledger.dispatched, common.theme()), "sankey")
    st.html(markup.ledger_table(accounts, ledger.dispatched))


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
