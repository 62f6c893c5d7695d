"""Rhythm: what the policy attended to while it spoke, in the episodes that a run recorded."""

from __future__ import annotations

import streamlit as st

from dashboard import markup
from dashboard import rhythm_markup as drawing
from dashboard.app import common
from rock.sdk import EpisodeRhythm, RhythmView

FRESH_S = 10.0


def page() -> None:
    chosen = common.chosen_run()
    if chosen is None:
        return
    run_id, _ = chosen
    found = common.source().read(("rhythms", run_id), lambda rock, _: rock.rhythms(run_id), fresh_s=FRESH_S)
    common.show_banner(found, None, "")
    if not found.value:
        if found.value is not None:
            st.html(
                markup.empty(
                    "No attention rhythm recorded",
                    "This run gives no credit by attention rhythm. One that does records some episodes of every step.",
                    ["rock train RECIPE 'algorithm.credit=[rhythm]'"],
                )
            )
        return
    note = f"{len(found.value):,} recorded episodes, the latest steps"
    st.html(markup.heading("How preplan and anchors are coupled", common.source_note(found)))
    st.html(markup.tiles(drawing.coupling_tiles(drawing.added([v.coupling for v in found.value]), note)))
    _read(run_id, _choose(found.value))


def _choose(views: list[RhythmView]) -> str:
    """The episode to read: from the address, else the latest."""
    by_id = {view.episode_id: view for view in views}
    wanted = st.query_params.get("episode", "")
    chosen = st.selectbox(
        "Recorded episode",
        list(by_id),
        index=list(by_id).index(wanted) if wanted in by_id else 0,
        format_func=lambda episode_id: drawing.label(by_id[episode_id]),
    )
    if st.query_params.get("episode") != chosen:
        st.query_params["episode"] = chosen
    return chosen


def _read(run_id: str, episode_id: str) -> None:
    reading = common.source().read(
        ("rhythm", run_id, episode_id), lambda rock, _: rock.rhythm(run_id, episode_id), fresh_s=60.0
    )
    record = reading.value
    if record is None:
        say = "It is no longer kept." if reading.missing else str(reading.error)
        st.html(markup.empty("Cannot show this episode", say))
        return
    _draw(record)


def _draw(record: EpisodeRhythm) -> None:
    st.html(drawing.legend())
    for series, says in drawing.SAYS.items():
        st.html(markup.heading(says) + drawing.tokens(record, series))
    gamma = sum(record.gamma) / len(record.gamma) if record.gamma else 1.0
    credit = f"{record.strategy.replace('_', ' ')}, mean factor {gamma:.2f}"
    st.html(markup.heading("Heads", f"credit: {credit}") + drawing.heads(record))
