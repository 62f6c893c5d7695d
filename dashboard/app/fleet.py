"""Fleet: what runs where, what failed and why."""

from __future__ import annotations

from datetime import timedelta

import streamlit as st

from dashboard import frames, markup, snapshots, text
from dashboard.app import actions, common
from dashboard.palette import SANDBOX_TONES
from dashboard.sentences import fleet_sentence, healing_sentence
from dashboard.snapshots import Fleet
from dashboard.source import Reading
from rock.sdk import SandboxState

FAILURES_SHOWN = 12
HEALED_SHOWN = 50
MEASURED = 24
"""Rows with their use of the machine: each is a question of its own. The filter brings others to the top."""
MEASURED_S = 4.0
OVER = frozenset({SandboxState.FAILED, SandboxState.GONE})  # shown as failures, or not at all
RECENT = timedelta(hours=1)
STATE_TONES = {state.value: tone for state, tone in SANDBOX_TONES.items()}


def page() -> None:
    live()
    actions.operate()
    lists()


@st.fragment(run_every=common.LIVE_S)
def live() -> None:
    reading = common.source().read("fleet", snapshots.fleet)
    if reading.value is None:
        common.no_platform(reading)
        return
    fleet = reading.value
    failures = frames.failures([*fleet.failed, *fleet.sandboxes], fleet.failure_events)
    now = common.now()
    recent = sum(1 for f in failures if now - text.utc(f.at) < RECENT)
    sentence = fleet_sentence(fleet.health, fleet.nodes, fleet.sandboxes, recent, "the last hour")
    up = text.duration(fleet.health.uptime_s)
    note = common.source_note(reading, f"rock {fleet.health.version} on {fleet.health.runtime}, up {up}")
    common.show_banner(reading, sentence, note)
    counts = frames.state_counts(fleet.sandboxes)
    if counts:
        st.html(markup.state_strip(counts))
    left, right = st.columns([5, 6], gap="medium")
    with left:
        _nodes(fleet)
    with right:
        _failures(failures)
    _quarantine(fleet)
    _healing(fleet)


@st.fragment(run_every=common.LIVE_S)
def lists() -> None:
    """What is long. It shares the answer that the upper part of the page was drawn from."""
    reading = common.source().read("fleet", snapshots.fleet)
    if reading.value is not None:
        _sandboxes(reading)
        _events(reading.value)


def _nodes(fleet: Fleet) -> None:
    st.html(markup.heading("Nodes", "load as each node measured it last"))
    now = common.now()
    cards = [
        markup.node_card(n, text.duration((now - text.utc(n.started_at)).total_seconds() if n.started_at else None))
        for n in fleet.nodes
    ]
    st.html(f'<div class="rk-cards">{"".join(cards)}</div>')


def _failures(failures: list[frames.Failure]) -> None:
    shown = failures[:FAILURES_SHOWN]
    note = f"latest {len(shown)} of {len(failures)} kept" if len(failures) > len(shown) else "latest first"
    st.html(markup.heading("Failures", f"{note}; click one for its evidence" if shown else ""))
    if not shown:
        st.html(markup.empty("No sandbox has failed", "A failure is shown here with its cause and last output."))
        return
    now = common.now()
    st.html("".join(markup.failure_item(f, text.clock(f.at, now)) for f in shown))


def _quarantine(fleet: Fleet) -> None:
    if not fleet.quarantine:
        return
    st.html(markup.heading("Quarantine", "what failed again and again, and is refused until somebody clears it"))
    now = common.now()
    st.html(markup.quarantine_table(fleet.quarantine, lambda at: text.clock(at, now)))


def _healing(fleet: Fleet) -> None:
    now = common.now()
    st.html(markup.heading("Healing", healing_sentence(frames.healing(fleet.healing, now - RECENT), "the last hour")))
    if not fleet.healing:
        return
    frame = frames.event_frame(fleet.healing[:HEALED_SHOWN], now)
    frame = frame.drop(columns=[c for c in ("node", "run") if not frame[c].astype(bool).any()])
    st.dataframe(
        frame,
        hide_index=True,
        width="stretch",
        height=min(38 + 35 * len(frame), 250),
        key="healing",
        column_config={"detail": st.column_config.TextColumn(width="large")},
    )


def _sandboxes(reading: Reading[Fleet]) -> None:
    assert reading.value is not None
    sandboxes = [s for s in reading.value.sandboxes if s.state not in OVER]
    head = st.empty()
    head.html(markup.heading("Sandboxes", "latest change first"))
    if not sandboxes:
        st.html(
            markup.empty(
                "No sandbox is alive",
                "Ask for one, or keep some ready in a warm pool.",
                ["rock sandbox create", "rock env build alfworld"],
            )
        )
        return
    frame = frames.sandbox_frame(sandboxes, common.now())
    words, states = st.columns([2, 3], vertical_alignment="bottom")
    needle = words.text_input(
        "Filter", placeholder="Filter: id, image, node, run …", key="fleet_filter", label_visibility="collapsed"
    )
    present = [s.value for s in SandboxState if (frame["state"] == s.value).any()]
    chosen = states.pills("State", present, selection_mode="multi", key="fleet_states", label_visibility="collapsed")
    shown = frames.matching(frame, needle or "", chosen or ())
    if shown.empty:
        st.html(markup.empty("Nothing matches", f"None of {len(frame):,} sandboxes matches the filter."))
        return
    measured = tuple(shown["sandbox"][:MEASURED])
    taken = common.source().read(
        ("usage", measured), lambda rock, _: snapshots.usage(rock, measured), fresh_s=MEASURED_S
    )
    if taken.value:
        of = f"of the first {len(measured)}" if len(shown) > len(measured) else "of each"
        note = f"latest change first; CPUs, memory, processes and disk {of}, as its node counts them"
        head.html(markup.heading("Sandboxes", note))
        shown = frames.with_usage(shown, taken.value)
    unused = [c for c in ("loosened", "run", "lease") if not frame[c].astype(bool).any()]
    st.dataframe(
        common.toned(shown.drop(columns=unused), "state", STATE_TONES),
        hide_index=True,
        width="stretch",
        height=min(38 + 35 * len(shown), 390),
        key="sandboxes",
    )


def _events(fleet: Fleet) -> None:
    st.html(markup.heading("Events", f"latest {len(fleet.events)}, newest first"))
    if not fleet.events:
        st.html(markup.empty("Nothing has happened yet", "Starts, failures and recoveries are listed here."))
        return
    frame = frames.event_frame(fleet.events, common.now())
    frame = frame.drop(columns=[c for c in ("node", "run") if not frame[c].astype(bool).any()])
    st.dataframe(
        frame,
        hide_index=True,
        width="stretch",
        height=min(38 + 35 * len(frame), 300),
        key="events",
        column_config={"detail": st.column_config.TextColumn(width="large")},
    )
