"""Compare: one metric of several runs over each other, and what their recipes do differently."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import changes, markup, text, work_figures
from dashboard.app import common
from dashboard.snapshots import RunSnapshot
from dashboard.source import Reading
from rock.sdk import RunView

MOST = 6
"""Runs at once: more lines than that nobody tells apart."""
FIRST = ("rollout/success", "rollout/reward", "learner/loss")
SMOOTHEST = 50
NEWEST = 2
"""Runs to begin with."""


def page() -> None:
    live()


@st.fragment(run_every=common.LIVE_S * 2)
def live() -> None:
    listed = common.runs()
    if listed.value is None:
        common.no_platform(listed)
        return
    common.show_banner(listed, None, "")
    if not listed.value:
        common.no_runs()
        return
    chosen = _choose(listed.value)
    if not chosen:
        st.html(markup.empty("No run chosen", f"Choose up to {MOST} runs above."))
        return
    readings = {run.id: _read(run.id) for run in chosen}
    snaps = {run_id: reading.value for run_id, reading in readings.items() if reading.value is not None}
    names = sorted({str(c) for snap in snaps.values() for c in snap.metrics.columns} - {"at"})
    if not names:
        st.html(markup.empty("No step has been reported yet", "The chosen runs have no metrics."))
        return
    metric, steps = _how(names)
    series = {_label(snap.run, chosen): _series(snap, metric) for snap in snaps.values()}
    there = {name: values for name, values in series.items() if len(values)}
    missing = [name for name in series if name not in there]
    note = f"{metric}, by step; bold: mean of {text.plural(steps, 'step')}" if steps > 1 else f"{metric}, by step"
    st.html(markup.heading(_title(metric), note + (f"; not reported by {', '.join(missing)}" if missing else "")))
    common.chart(work_figures.comparison_figure(there, steps, common.theme()), "comparison")
    _last_values(there, steps)
    _recipes([run for run in chosen if run.id in snaps])


def _read(run_id: str) -> Reading[RunSnapshot]:
    return common.ask_run(run_id, fresh_s=2.0)


def _choose(runs: list[RunView]) -> list[RunView]:
    by_id = {run.id: run for run in runs}
    if "compared" not in st.session_state:
        asked = [r for r in st.query_params.get("runs", "").split(",") if r in by_id]
        st.session_state["compared"] = asked[:MOST] or list(by_id)[:NEWEST]
    st.multiselect(
        "Runs",
        list(by_id),
        format_func=lambda run_id: f"{by_id[run_id].name} · {run_id}" if run_id in by_id else run_id,
        key="compared",
        max_selections=MOST,
        label_visibility="collapsed",
        placeholder=f"up to {MOST} runs",
    )
    chosen = [by_id[run_id] for run_id in st.session_state["compared"] if run_id in by_id]
    st.query_params["runs"] = ",".join(run.id for run in chosen)
    return chosen


def _how(names: list[str]) -> tuple[str, int]:
    first = st.query_params.get("metric") or next((name for name in FIRST if name in names), names[0])
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    index = names.index(first) if first in names else 0
    metric = left.selectbox("Metric", names, index=index, key="compared_metric")
    steps = right.slider("Mean of how many steps", 1, SMOOTHEST, 10, key="compared_steps")
    st.query_params["metric"] = metric
    return metric, steps


def _series(snap: RunSnapshot, metric: str) -> pd.Series:
    frame = snap.metrics
    return frame[metric].dropna() if metric in frame.columns else pd.Series(dtype="float64")


def _label(run: RunView, chosen: list[RunView]) -> str:
    alone = sum(other.name == run.name for other in chosen) == 1
    return run.name if alone else f"{run.name} {run.id.removeprefix('run-')[:4]}"


def _title(metric: str) -> str:
    return metric.partition("/")[2].replace("_", " ").capitalize() or metric


def _last_values(series: dict[str, pd.Series], steps: int) -> None:
    window = f"mean of the last {text.plural(steps, 'step')}"
    st.html(
        markup.tiles(
            (name, text.number(float(values.tail(steps).mean())), f"{window}, to step {values.index[-1]:,}", None)
            for name, values in series.items()
        )
    )


def _recipes(runs: list[RunView]) -> None:
    if len(runs) < 2:
        return
    flat = [changes.flat(run.recipe) for run in runs]
    keys = sorted({key for recipe in flat for key in recipe})
    rows = [
        {
            "key": key,
            **{_label(run, runs): recipe.get(key, text.NOTHING) for run, recipe in zip(runs, flat, strict=True)},
        }
        for key in keys
        if len({recipe.get(key) for recipe in flat}) > 1
    ]
    st.html(markup.heading("Recipes", "keys that differ"))
    if not rows:
        st.html(markup.empty("The same", "These runs were started with equal recipes."))
        return
    st.dataframe(pd.DataFrame(rows), hide_index=True, width="stretch", height=min(38 + 35 * len(rows), 400))
