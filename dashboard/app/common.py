"""What all pages share: the one source, the theme in use, how staleness looks, the choice of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from pandas.io.formats.style import Styler

from dashboard import markup, palette, snapshots, text
from dashboard.figures import CONFIG
from dashboard.palette import Theme, Tone
from dashboard.sentences import Sentence, staleness_sentence
from dashboard.snapshots import RunSnapshot
from dashboard.source import FRESH_S, Reading, Source
from rock.sdk import Rock, RunView

LIVE_S = 2.0
REMEMBER_S = 60.0
STYLE = (Path(__file__).parent.parent / "style.css").read_text()
STALE_STYLE = (
    "<style>.rk-strip,.rk-legend,.rk-cards,.rk-tiles,.rk-table,.rk-failure,.rk-incidents,.stDataFrame,.stPlotlyChart"
    "{opacity:.55;filter:grayscale(.85)}</style>"
)


@st.cache_resource(show_spinner=False)
def source() -> Source:
    """One for all visitors of this process."""
    return Source()


def theme() -> Theme:
    return "dark" if st.context.theme.type == "dark" else "light"


def style() -> None:
    st.html(f"<style>{palette.variables(theme())}{STYLE}</style>")


def remember() -> None:
    """Read what every page leads with, whichever is open: if the platform goes away, all have something to show."""
    source().read("fleet", snapshots.fleet, fresh_s=REMEMBER_S)
    runs()


def now() -> datetime:
    return datetime.now(UTC)


def show_banner(reading: Reading[Any], sentence: Sentence | None, note: str) -> None:
    """The page's sentence; above it, if the data is not of this moment, since when not."""
    stale = staleness_sentence(reading, source().url, now())
    if stale is not None:
        hint = reading.error.hint if reading.error else ""
        st.html(markup.banner(stale, f"{hint} Asked again every {LIVE_S:.0f} s.".strip()) + STALE_STYLE)
    if sentence is not None:
        st.html(markup.banner(sentence, note))


def source_note(reading: Reading[Any], *more: str) -> str:
    """Where a page's numbers come from, and when they were true."""
    at = text.clock(reading.at, now()) if reading.at else "never"
    fresh = f"as of {at}" if reading.stale else f"live from {source().url}, {at}"
    return " · ".join([fresh, *(m for m in more if m)])


def no_platform(reading: Reading[Any]) -> None:
    show_banner(reading, None, "")
    st.html(
        markup.empty(
            "Nothing to show yet",
            "This page has no data from earlier. Start a platform here, or name the one to look at; "
            "the page fills as soon as it answers.",
            ["rock up -d", "rock dashboard --url http://HOST:7625"],
        )
    )


def chart(figure: go.Figure, key: str) -> None:
    st.plotly_chart(figure, theme=None, key=key, config=CONFIG, width="stretch")


def toned(frame: pd.DataFrame, column: str, tones: Mapping[str, Tone]) -> Styler:
    """The frame with the words of one column in the colour of their meaning."""
    ink = {word: palette.colour(tone, theme()) for word, tone in tones.items() if tone is not Tone.FAINT}
    floats = list(frame.select_dtypes("float"))
    styler = frame.style.format(text.number, subset=floats)
    return styler.map(lambda word: f"color: {ink[word]}" if word in ink else "", subset=[column])


def choose_run(all_runs: Sequence[RunView]) -> RunView:
    """The run to look at: from the address, else chosen before on another page, else the youngest."""
    by_id = {run.id: run for run in all_runs}
    wanted = st.session_state.get("chosen_run") or st.query_params.get("run")
    index = list(by_id).index(wanted) if wanted in by_id else 0
    chosen = st.selectbox(
        "Run",
        list(by_id),
        index=index,
        format_func=partial(_run_label, by_id),
        label_visibility="collapsed",
    )
    run = by_id[chosen]
    st.session_state["chosen_run"] = run.id
    if st.query_params.get("run") != run.id:
        st.query_params["run"] = run.id
    return run


def _run_label(by_id: dict[str, RunView], run_id: str) -> str:
    run = by_id.get(run_id)
    if run is None:
        return run_id
    return f"{run.name} · {run.status.replace('_', ' ')} · {text.clock(run.created_at, now())} · {run.id}"


def runs() -> Reading[list[RunView]]:
    return source().read("runs", snapshots.runs)


def ask_run(run_id: str, *, fresh_s: float = FRESH_S) -> Reading[RunSnapshot]:
    def ask(rock: Rock, before: RunSnapshot | None) -> Awaitable[RunSnapshot]:
        return snapshots.run_snapshot(rock, run_id, before)

    return source().read(("run", run_id), ask, fresh_s=fresh_s)


def chosen_run() -> tuple[str, list[RunView]] | None:
    """The run to look at and all there are; None where there is nothing to choose from, which the page then says."""
    listed = runs()
    if listed.value is None:
        no_platform(listed)
        return None
    if not listed.value:
        show_banner(listed, None, "")
        no_runs()
        return None
    return choose_run(listed.value).id, listed.value


def no_runs() -> None:
    st.html(
        markup.empty(
            "No run yet",
            "A training run appears here with its first step, and stays after its end.",
            ["rock train recipes/alfworld-tiny.yaml", "make demo"],
        )
    )
