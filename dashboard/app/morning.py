"""Morning: what happened overnight, on one page, from a sentence down to what changed."""

from __future__ import annotations

import os
from typing import Any

import streamlit as st

from dashboard import (
    changes,
    figures,
    frames,
    latencies,
    markup,
    morning_markup,
    snapshots,
    text,
    work_figures,
    worktime,
)
from dashboard.app import common
from dashboard.incidents import Incident, endings, incidents
from dashboard.palette import Tone
from dashboard.sentences import ACTIVE, Sentence, alert_sentence, incidents_sentence, run_facts, run_sentence
from dashboard.snapshots import Fleet, RunSnapshot, Speed, Trouble
from dashboard.source import Ask, Reading
from dashboard.tiles import fleet_tiles, outcome_window, run_tiles
from dashboard.worktime import Price
from rock.sdk import RunView

PRICE_ENV = "ROCK_WORKER_HOUR_PRICE"
INCIDENTS_SHOWN = 12
CHANGES_SHOWN = 12
SLOWER_S = 4.0
"""What changes slowly is asked for less often than the run itself."""


def page() -> None:
    live()


@st.fragment(run_every=common.LIVE_S)
def live() -> None:
    chosen = common.chosen_run()
    if chosen is None:
        return
    run_id, listed = chosen
    source = common.source()
    broke, *later = _questions(run_id).items()
    source.ahead(*broke, fresh_s=SLOWER_S)
    reading = common.ask_run(run_id)
    for question in later:  # not before: the sentence waits for the run and for what broke
        source.ahead(*question, fresh_s=SLOWER_S)
    trouble: Reading[Trouble] = source.read(*broke, fresh_s=SLOWER_S)
    if reading.value is None:
        common.show_banner(reading, None, "")
        return
    snap = reading.value
    found = _of_this_run(incidents(trouble.value.events, trouble.value.failed), snap) if trouble.value else None
    _sentence(reading, found)
    _alerts(snap)
    _outcome(snap)
    _time(snap)
    _incidents(trouble, found)
    speed, fleet = (source.read(*question, fresh_s=SLOWER_S) for question in later)
    _environments(speed, fleet)
    if fleet.value is not None:
        _fleet(fleet.value, trouble.value)
    _changes(snap, listed, fleet.value, trouble.value)


def _questions(run_id: str) -> dict[object, Ask[Any]]:
    """What the page asks beside the run itself: what broke, how long environments take, the fleet."""
    return {
        ("trouble", run_id): lambda rock, _: snapshots.trouble(rock, run_id),
        ("speed", run_id): lambda rock, _: snapshots.speed(rock, run_id),
        "fleet": snapshots.fleet,
    }


def _of_this_run(found: list[Incident], snap: RunSnapshot) -> list[Incident]:
    """Those of the platform count from the run's beginning to its last word."""
    begun, ended = text.utc(snap.run.created_at), text.utc(snap.run.updated_at)
    active = snap.run.status in ACTIVE
    return [i for i in found if i.run_id or (text.utc(i.at) >= begun and (active or text.utc(i.at) <= ended))]


def _sentence(reading: Reading[RunSnapshot], found: list[Incident] | None) -> None:
    snap, now = reading.value, common.now()
    assert snap is not None
    facts = run_facts(snap.run, snap.metrics, snap.ledger, snap.events, now)
    said = None
    if found is not None:
        said = incidents_sentence(endings(found), frames.unbalanced(snap.ledger), snap.ledger.dispatched)
    heard = f"last word of the trainer {text.ago(facts.heard_at, now)}"
    note = common.source_note(reading, heard, snap.run.id)
    sentence = run_sentence(snap.run, facts, said)
    if sentence.tone is Tone.GOOD and alert_sentence(snap.run, snap.metrics) is not None:
        sentence = Sentence(Tone.VOID, sentence.text)
    common.show_banner(reading, sentence, note)
    st.html(run_tiles(facts, active=snap.run.status in ACTIVE))


def _alerts(snap: RunSnapshot) -> None:
    said = alert_sentence(snap.run, snap.metrics)
    if said is not None:
        st.html(markup.banner(said, "rules and receivers: the recipe's section `alerts`"))


def _outcome(snap: RunSnapshot) -> None:
    st.html(markup.heading("Success, reward and void rate", outcome_window(len(snap.metrics))))
    if snap.metrics.empty:
        st.html(markup.empty("No step has been reported yet", "The first one comes after warm start and first batch."))
        return
    common.chart(figures.outcome_figure(snap.metrics, common.theme(), 300), "morning-outcome")


def _time(snap: RunSnapshot) -> None:
    spent = worktime.spent(snap.metrics, snap.run.created_at)
    if spent is None or not spent.parts:
        st.html(markup.heading("Where the time went"))
        st.html(markup.empty("Not reported", "This run reports no time/step_s."))
        return
    price, wrong = _price()
    cost = f"{price.of(spent.worker_s)} at {price.per_hour:g} {price.unit} an hour; " if price else ""
    head, ask = st.columns([5, 1.4], vertical_alignment="bottom")
    head.html(markup.heading("Where the time went", cost + spent.window))
    ask.text_input(
        "Price of a worker-hour",
        key="price",
        placeholder="price, e.g. 2.50 EUR",
        label_visibility="collapsed",
        on_change=_keep_price,
        help=f"Of one worker for an hour. Kept in the address; ${PRICE_ENV} sets it for everybody.",
    )
    if wrong:
        st.html(markup.banner(Sentence(Tone.VOID, wrong[0].upper() + wrong[1:] + ".")))
    common.chart(work_figures.waterfall_figure(spent, price, common.theme()), "waterfall")


def _price() -> tuple[Price | None, str]:
    if "price" not in st.session_state:
        st.session_state["price"] = st.query_params.get("price", os.environ.get(PRICE_ENV, ""))
    try:
        return worktime.parse_price(st.session_state["price"]), ""
    except ValueError as error:
        return None, str(error)


def _keep_price() -> None:
    st.query_params["price"] = st.session_state["price"]


def _incidents(trouble: Reading[Trouble], found: list[Incident] | None) -> None:
    shown = (found or [])[:INCIDENTS_SHOWN]
    note = "since the run began; click one for its evidence" if shown else "since the run began"
    more = f" · latest {len(shown)} of {len(found):,}" if found and len(found) > len(shown) else ""
    st.html(markup.heading("Incidents", note + more))
    if found is None:
        st.html(markup.empty("Not known", str(trouble.error or "The platform has not answered yet.")))
    elif not found:
        st.html(markup.empty("None", "No sandbox of the run failed, no node went down, nothing was restarted."))
    else:
        now = common.now()
        st.html(morning_markup.incident_list(shown, lambda at: text.clock(at, now)))


def _environments(speed: Reading[Speed], fleet: Reading[Fleet]) -> None:
    st.html(markup.heading("Environments", "all ended episodes of the run, within 5 %; p95 against its objective"))
    if speed.value is None or not speed.value.measured:
        st.html(markup.empty("Nothing measured yet", "Each episode that ends says how long its environment took."))
    else:
        objectives = {env.name: env.objectives for env in speed.value.envs}
        st.html(morning_markup.latency_table(latencies.against_objectives(speed.value.measured, objectives)))
    if fleet.value is None:
        return
    slow = latencies.slowest(fleet.value.nodes)
    if slow:
        st.html(markup.heading("Slowest images and nodes", "median step of late, as the guests measured it"))
        st.html(morning_markup.slow_table(slow))
    if fleet.value.quarantine:
        now = common.now()
        st.html(markup.heading("Quarantine", "refused until somebody clears it"))
        st.html(markup.quarantine_table(fleet.value.quarantine, lambda at: text.clock(at, now)))


def _fleet(fleet: Fleet, trouble: Trouble | None) -> None:
    st.html(markup.heading("Fleet", "now; leaks and restarts of the last 24 hours"))
    orphans = trouble.orphans if trouble else ()
    st.html(fleet_tiles(fleet, orphans, trouble.events if trouble else (), common.now()))


def _changes(snap: RunSnapshot, runs: list[RunView], fleet: Fleet | None, trouble: Trouble | None) -> None:
    good = changes.last_good(snap.metrics)
    since = good.at if good is not None and not good.now else snap.run.created_at
    if good is None:
        title, note = "What changed", "since the run began: no step says that it was well"
    elif good.now:
        title, note = "What changed", f"since the run began; its newest step, {good.newest:,}, is good ({good.by})"
    else:
        title = "What changed since the last good step"
        note = f"step {good.step:,}, {text.clock(good.at, common.now()) if good.at else ''} ({good.by})"
    st.html(markup.heading(title, note))
    facts = []
    step = int(snap.metrics.index.max()) if len(snap.metrics) else 0
    begun = good.step if good is not None and not good.now else 0
    facts.append(("weights", f"v{begun:,} → v{step:,}, one version a step"))
    if fleet is not None:
        used = changes.images([*fleet.sandboxes, *fleet.failed], snap.run.id)
        facts.append(("image", ", then ".join(reversed(used)) or text.NOTHING))
    before = changes.run_before(snap.run, runs)
    recipe = changes.recipe_changes(before.recipe, snap.run.recipe) if before else []
    if before:
        differs = f"differs in {text.plural(len(recipe), 'key')} from" if recipe else "the same as that of"
        facts.append(("recipe", f"{differs} {before.id}, the run of this name before it"))
    else:
        facts.append(("recipe", "the first run of this name"))
    happened = changes.events_since(trouble.events, since) if trouble else []
    now = common.now()
    st.html(morning_markup.change_list(facts, recipe, happened[:CHANGES_SHOWN], lambda at: text.clock(at, now)))
