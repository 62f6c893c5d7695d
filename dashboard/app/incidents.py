"""Incidents: of one run or of the whole platform, in time and one by one."""

from __future__ import annotations

from statistics import median

import streamlit as st

from dashboard import markup, morning_markup, snapshots, text, work_figures
from dashboard.app import common
from dashboard.incidents import VERDICTS, Incident, endings, incidents
from dashboard.palette import Tone
from rock.sdk import RunView

EVERYTHING = ""
PAGE_ROWS = 100


def page() -> None:
    live()


@st.fragment(run_every=common.LIVE_S)
def live() -> None:
    listed = common.runs()
    if listed.value is None:
        common.no_platform(listed)
        return
    run_id = _whose(listed.value)
    reading = common.source().read(
        ("trouble", run_id), lambda rock, _: snapshots.trouble(rock, run_id), fresh_s=common.LIVE_S
    )
    common.show_banner(reading, None, "")
    if reading.value is None:
        return
    found = _matching(incidents(reading.value.events, reading.value.failed))
    if not found:
        st.html(markup.empty("No incident", "Nothing of the kind has happened, or nothing matches."))
        return
    st.html(_tiles(found))
    window = f"latest {snapshots.EVENTS} events of each kind; larger: more episodes touched"
    st.html(markup.heading("In time", window))
    common.chart(work_figures.incident_figure(found, common.theme()), "incidents")
    shown = found[:PAGE_ROWS]
    more = f"latest {len(shown)} of {len(found):,}; " if len(found) > len(shown) else ""
    st.html(markup.heading("One by one", f"{more}click one for its evidence"))
    now = common.now()
    st.html(morning_markup.incident_list(shown, lambda at: text.clock(at, now)))


def _whose(runs: list[RunView]) -> str:
    names = {EVERYTHING: "all runs and the platform", **{r.id: f"{r.name} · {r.id}" for r in runs}}
    wanted = st.query_params.get("run", EVERYTHING)
    index = list(names).index(wanted) if wanted in names else 0
    chosen = st.selectbox(
        "Run", list(names), index=index, format_func=lambda r: names.get(r, r), label_visibility="collapsed"
    )
    st.query_params["run"] = chosen
    return chosen


def _matching(found: list[Incident]) -> list[Incident]:
    words, verdicts = st.columns([2, 3], vertical_alignment="bottom")
    needle = words.text_input(
        "Filter", placeholder="Filter: cause, sandbox, node …", key="incident_filter", label_visibility="collapsed"
    )
    present = [verdict for verdict in VERDICTS if any(i.verdict == verdict for i in found)]
    kept = verdicts.pills(
        "Verdict", present, selection_mode="multi", key="incident_verdicts", label_visibility="collapsed"
    )
    if kept:
        found = [i for i in found if i.verdict in kept]
    for word in (needle or "").lower().split():
        found = [i for i in found if word in f"{i.what} {i.cause} {i.detail} {i.node} {i.run_id}".lower()]
    return found


def _tiles(found: list[Incident]) -> str:
    counts = endings(found)
    seen = [i.detected_s for i in found if i.detected_s is not None]
    mended = [i.recovered_s for i in found if i.recovered_s is not None]
    items: list[tuple[str, str, str, Tone | None]] = [
        ("detected in", text.duration(median(seen) if seen else None), f"median of {len(seen):,}", None),
        ("recovered in", text.duration(median(mended) if mended else None), f"median of {len(mended):,}", None),
        ("episodes", f"{sum(i.touched for i in found):,}", "touched", None),
    ]
    items += [
        (verdict, f"{n:,}", text.plural(n, "incident").partition(" ")[2], VERDICTS[verdict][0])
        for verdict, n in counts.items()
    ]
    return markup.tiles(items)
