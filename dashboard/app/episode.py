"""Episode: find one, and read it turn by turn."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import episode_frames, episode_story, figures, markup, snapshots, text
from dashboard.app import common
from dashboard.snapshots import PAGE_SIZE, Search, Story
from dashboard.source import Reading
from rock.domain.outcome import VoidCause
from rock.sdk import EpisodePage, EpisodeRecord

PHASES = {"": "any phase", "train": "train", "eval": "eval", "warm_start": "warm start"}
RESULTS = {
    "": "any result",
    "success": "success",
    "failure": "failure",
    "truncated": "truncated",
    "void": "void",
    "cancelled": "cancelled",
}
CAUSES = {"": "any cause", **{cause.value: cause.value.replace("_", " ") for cause in VoidCause}}
CHART_FROM_TURNS = 2
MEMBERS_FROM = 2


def page() -> None:
    listed = common.runs()
    if listed.value is None:
        common.no_platform(listed)
        st.fragment(_wait_for_platform, run_every=common.LIVE_S)()
        return
    if not listed.value:
        common.show_banner(listed, None, "")
        common.no_runs()
        return
    run_id = common.choose_run(listed.value).id
    search = _search_form(run_id)
    _watch()
    found = _find(search)
    if found.value is None:
        common.show_banner(found, None, "")
        return
    chosen = _list(search, found) or st.query_params.get("episode", "")
    if not chosen and found.value.episodes:
        chosen = found.value.episodes[0].id
    if chosen:
        _read(run_id, chosen)


def _wait_for_platform() -> None:
    if common.runs().value is not None:
        st.rerun()


def _search_form(run_id: str) -> Search:
    wanted_words = st.query_params.get("find", "")
    if wanted_words and st.session_state.get("episode_linked") != wanted_words:
        st.session_state["episode_linked"] = st.session_state["episode_text"] = wanted_words
    words, again = st.columns([6, 1], vertical_alignment="bottom")
    result, why, phase, low, high = st.columns(5, vertical_alignment="bottom")
    again.button("Refresh", on_click=_look_again, width="stretch", help="Look for newer episodes")
    sought = words.text_input(
        "Search",
        placeholder="Search: task, episode, reason, sandbox …",
        key="episode_text",
        label_visibility="collapsed",
    )
    wanted = result.selectbox(
        "Result", list(RESULTS), format_func=RESULTS.__getitem__, key="episode_result", label_visibility="collapsed"
    )
    cause = why.selectbox(
        "Cause", list(CAUSES), format_func=CAUSES.__getitem__, key="episode_cause", label_visibility="collapsed"
    )
    lowest = _reward(low, "Reward from", "episode_low")
    highest = _reward(high, "Reward to", "episode_high")
    when = phase.selectbox(
        "Phase", list(PHASES), format_func=PHASES.__getitem__, key="episode_phase", label_visibility="collapsed"
    )
    asked = (run_id, when, wanted, cause, lowest, highest, sought)
    if st.session_state.get("episode_asked") != asked:
        st.session_state["episode_asked"] = asked
        st.session_state["episode_page"] = 1
    page = st.session_state["episode_page"] - 1
    return Search(run_id, when or "", wanted or "", cause or "", lowest, highest, (sought or "").strip(), page)


def _reward(where: DeltaGenerator, label: str, key: str) -> float | None:
    """None: no bound."""
    bound = where.number_input(
        label, value=None, step=0.1, format="%g", key=key, placeholder=label.lower(), label_visibility="collapsed"
    )
    return None if bound is None else float(bound)


@st.fragment(run_every=common.LIVE_S)
def _watch() -> None:
    """Says so when the platform goes away while one reads."""
    common.show_banner(common.source().read("health", lambda rock, _: rock.health()), None, "")


def _find(search: Search) -> Reading[EpisodePage]:
    """The matches as they were when last asked for. They stand still while one reads: a row that moved between being
    drawn and being clicked would open another episode."""
    if st.session_state.get("episode_search") != search:
        st.session_state["episode_search"] = search
        st.session_state.pop("episode_found", None)
    kept = st.session_state.get("episode_found")
    if kept is None:
        kept = common.source().read(search, lambda rock, _: snapshots.episodes(rock, search))
        if kept.value is not None and not kept.stale:
            st.session_state["episode_found"] = kept
    return kept


def _look_again() -> None:
    st.session_state.pop("episode_found", None)


def _list(search: Search, reading: Reading[EpisodePage]) -> str:
    """The table of matches; the id of the row that was clicked, or nothing."""
    assert reading.value is not None
    found = reading.value
    if not found.total:
        st.html(
            markup.empty("Nothing found", "No episode of this run matches. Widen the search, or wait for episodes.")
        )
        return ""
    pages = -(-found.total // PAGE_SIZE)
    first = search.page * PAGE_SIZE + 1
    last = first + len(found.episodes) - 1
    at = text.clock(reading.at) if reading.at else text.NOTHING
    page = f" (page {search.page + 1} of {pages:,})" if pages > 1 else ""
    note = f"{first:,}–{last:,} of {found.total:,}{page}, latest first, as of {at}"
    head, pager = st.columns([4, 1], vertical_alignment="bottom")
    head.html(markup.heading("Episodes", note))
    if pages > 1:
        pager.number_input("Page", 1, pages, key="episode_page", label_visibility="collapsed")
    frame = episode_frames.episode_frame(found.episodes, common.now())
    frame = frame.drop(columns=[c for c in ("reason", "recovered") if not frame[c].astype(bool).any()])
    event = st.dataframe(
        common.toned(frame, "result", markup.RESULT_TONES),
        hide_index=True,
        width="stretch",
        height=min(38 + 35 * len(frame), 285),
        on_select="rerun",
        selection_mode="single-row",
        key=f"episodes {search}",
        column_config={"reason": st.column_config.TextColumn(width="medium")},
    )
    rows = event.selection.rows
    if not rows or rows[0] >= len(found.episodes):
        return ""
    chosen = found.episodes[rows[0]].id
    if st.query_params.get("episode") != chosen:
        st.query_params["episode"] = chosen
    return chosen


def _read(run_id: str, episode_id: str) -> None:
    reading = common.source().read(
        ("episode", run_id, episode_id), lambda rock, _: snapshots.story(rock, run_id, episode_id), fresh_s=30.0
    )
    st.html(markup.heading(f"Episode {episode_id}", common.source_note(reading) if reading.value else ""))
    story = reading.value
    if story is None:
        say = "This run has no such episode." if reading.missing else str(reading.error)
        st.html(markup.empty("Cannot show this episode", say))
        return
    episode = story.episode
    st.html(markup.episode_banner(episode))
    st.html(markup.facts(_facts(episode)))
    _again(run_id, episode)
    _group(story)
    turns = episode_frames.turn_frame(episode.turns)
    if not episode.turns:
        st.html(
            markup.empty(
                "No turns were recorded", "The episode ended before its first one, or its turns were not kept."
            )
        )
        return
    if len(turns) >= CHART_FROM_TURNS:
        left, right = st.columns(2, gap="medium")
        with left:
            st.html(markup.heading("Time per turn"))
            common.chart(figures.turn_figure(turns, common.theme()), "turn-times")
        with right:
            st.html(markup.heading("Confidence per turn"))
            common.chart(figures.logprob_figure(turns, common.theme()), "turn-logprobs")
    _turns(story)


def _again(run_id: str, episode: EpisodeRecord) -> None:
    commands = episode_story.commands(run_id, episode)
    if commands:
        with st.expander("Play it again", expanded=False):
            st.caption(
                "Its actions, twice in sandboxes of their own, compared; then the learner's steps up to its own."
            )
            st.code(commands, language="bash", wrap_lines=True)


def _group(story: Story) -> None:
    if len(story.group) < MEMBERS_FROM:
        return
    frame = episode_story.group_frame(story.episode, story.group)
    more = f", the latest {len(story.group)}" if len(story.group) >= snapshots.GROUP_SIZE else ""
    note = f"{len(story.group):,} episodes of one task{more}; reward less their mean: what advantages start from"
    st.html(markup.heading(f"Its group {story.episode.group_id}", note))
    st.dataframe(
        common.toned(frame, "result", markup.RESULT_TONES),
        hide_index=True,
        width="stretch",
        height=min(38 + 35 * len(frame), 285),
        key="episode-group",
    )


def _turns(story: Story) -> None:
    episode = story.episode
    advantages = episode_story.turn_advantages(episode, story.rhythm)
    told = "advantages with which it was trained on, as its attention rhythm recorded them"
    st.html(markup.heading("Turn by turn", told if any(a is not None for a in advantages) else ""))
    lost = episode_story.recoveries(episode, story.recovered)
    versions = [None, *(t.policy_version for t in episode.turns)]
    st.html(
        "".join(
            markup.turn_card(
                i, turn, previous_version=before, advantage=advantage, recovered=[r.says for r in lost if r.turn == i]
            )
            for i, (turn, before, advantage) in enumerate(zip(episode.turns, versions, advantages, strict=False), 1)
        )
    )


def _facts(e: EpisodeRecord) -> list[tuple[str, str]]:
    now = common.now()
    return [
        ("task", e.task or text.NOTHING),
        ("environment", f"{e.env}, seed {e.seed}"),
        ("split", e.split),
        ("phase", f"{e.phase.replace('_', ' ')}, step {e.step}"),
        ("policy", f"v{e.policy_version}"),
        ("ledger", e.ledger.value.replace("_", " ")),
        ("group", e.group_id or text.NOTHING),
        ("sandbox", e.sandbox_id or text.NOTHING),
        ("recovered", text.plural(e.recoveries, "time") if e.recoveries else "never"),
        ("tokens generated", f"{e.generated_tokens:,}"),
        ("sandbox time", text.duration(e.sandbox_s)),
        ("played", f"{text.clock(e.started_at, now)} to {text.clock(e.ended_at, now)}"),
    ]
