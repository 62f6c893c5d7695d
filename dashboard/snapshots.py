"""What a page asks for in one go, so that its parts speak of the same moment. Bounded: never all episodes, never all
events; a run's metrics are fetched once and then only what is new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from dashboard.frames import metric_frame
from rock.sdk import (
    EpisodePage,
    EpisodeRecord,
    EventView,
    Health,
    LedgerView,
    MetricPoint,
    NodeView,
    Rock,
    RunView,
    SandboxState,
    SandboxView,
)

EVENTS = 200
RUN_EVENTS = 500
RECHECKED_STEPS = 5  # of the steps known already, the last ones are asked for again: an evaluation may add to them
WHOLE_EVERY_S = 60.0  # then all of them: a resumed run reports older steps again
PAGE_SIZE = 50
SEARCHED = 1000  # episodes looked through, latest first, when searching by task
_SEARCH_PAGE = 200


@dataclass(frozen=True, slots=True)
class Fleet:
    health: Health
    nodes: Sequence[NodeView]
    sandboxes: Sequence[SandboxView]
    """The living."""
    failed: Sequence[SandboxView]
    """Those that failed, with their evidence: as many as the platform keeps at hand."""
    events: Sequence[EventView]
    failure_events: Sequence[EventView]


async def fleet(rock: Rock, _: Fleet | None) -> Fleet:
    health, nodes, sandboxes, failed, events, failure_events = await asyncio.gather(
        rock.health(),
        rock.nodes(),
        rock.sandboxes(),
        rock.sandboxes(state=SandboxState.FAILED),
        rock.events(limit=EVENTS),
        rock.events(limit=EVENTS, kind="sandbox.failed"),
    )
    return Fleet(health, nodes, sandboxes, failed, events, failure_events)


async def runs(rock: Rock, _: list[RunView] | None) -> list[RunView]:
    return await rock.runs()


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    run: RunView
    points: Mapping[int, MetricPoint]
    metrics: pd.DataFrame
    ledger: LedgerView
    events: Sequence[EventView]
    last_episode_at: datetime | None
    whole_at_s: float
    """When all of the run's metrics were last read (monotonic)."""


async def run_snapshot(rock: Rock, run_id: str, previous: RunSnapshot | None) -> RunSnapshot:
    known = dict(previous.points) if previous is not None else {}
    run, ledger, events, last = await asyncio.gather(
        rock.run(run_id),
        rock.ledger(run_id),
        rock.events(limit=RUN_EVENTS, run_id=run_id),
        rock.episodes(run_id, limit=1),
    )
    last_at = last.episodes[0].ended_at if last.episodes else None
    whole_at_s = previous.whole_at_s if previous is not None else 0.0
    if not known or time.monotonic() - whole_at_s > WHOLE_EVERY_S:
        known, whole_at_s = {}, time.monotonic()
    since = max(0, max(known) - RECHECKED_STEPS) if known else 0
    new = await rock.metrics(run_id, since_step=since)
    fresh = {point.step: point for point in new}
    if previous is not None and known and all(known.get(step) == point for step, point in fresh.items()):
        return RunSnapshot(run, previous.points, previous.metrics, ledger, events, last_at, whole_at_s)
    points = {**known, **fresh}
    return RunSnapshot(run, points, metric_frame(points.values()), ledger, events, last_at, whole_at_s)


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for. ``task`` is part of a task's or an episode's name; empty fields match everything."""

    run_id: str
    phase: str = ""
    result: str = ""
    task: str = ""
    page: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    episodes: Sequence[EpisodeRecord]
    total: int
    """Episodes that match, of those searched."""
    searched: int
    """Episodes looked through; 0 if the platform itself answered for all of them."""
    of: int
    """Episodes there are for the phase and outcome."""


# The platform knows outcomes; success is a property of completed and truncated ones.
_OUTCOME = {"success": "", "failure": "", "truncated": "truncated", "void": "void", "cancelled": "cancelled"}


async def episodes(rock: Rock, search: Search) -> Found:
    """One page of matches. Phase and outcome are the platform's to find; success and task are looked for in the latest
    ``SEARCHED`` episodes."""
    outcome = _OUTCOME.get(search.result) or None
    phase = search.phase or None
    offset = search.page * PAGE_SIZE
    if not search.task and search.result not in {"success", "failure"}:
        page = await rock.episodes(search.run_id, phase=phase, outcome=outcome, limit=PAGE_SIZE, offset=offset)
        return Found(page.episodes, page.total, 0, page.total)
    matches: list[EpisodeRecord] = []
    looked = of = 0
    while looked < SEARCHED:
        got: EpisodePage = await rock.episodes(
            search.run_id, phase=phase, outcome=outcome, limit=_SEARCH_PAGE, offset=looked
        )
        of = got.total
        looked += len(got.episodes)
        matches += [e for e in got.episodes if _matches(e, search)]
        if not got.episodes or looked >= of:
            break
    return Found(matches[offset : offset + PAGE_SIZE], len(matches), looked, of)


def _matches(episode: EpisodeRecord, search: Search) -> bool:
    if search.result == "success" and not episode.success:
        return False
    if search.result == "failure" and (episode.success is not False or episode.outcome in {"void", "cancelled"}):
        return False
    where = f"{episode.task} {episode.id} {episode.reason} {episode.sandbox_id}".lower()
    return all(word in where for word in search.task.lower().split())
