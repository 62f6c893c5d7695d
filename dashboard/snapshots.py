"""What a page asks for in one go, so that its parts speak of the same moment. Bounded: never all episodes, never all
events; a run's metrics are fetched once and then only what is new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dashboard.frames import HEALED, metric_frame
from dashboard.incidents import PLATFORM_KINDS, RUN_KINDS
from rock.sdk import (
    Conflict,
    EnvView,
    EpisodePage,
    EpisodeRecord,
    EpisodeRhythm,
    EventView,
    Forbidden,
    Health,
    InvalidRequest,
    LatencyView,
    LedgerView,
    MetricPoint,
    NodeView,
    NotFound,
    QuarantineView,
    Rock,
    RunView,
    SandboxState,
    SandboxStats,
    SandboxView,
    Unauthorized,
)

EVENTS = 200
RUN_EVENTS = 500
RECHECKED_STEPS = 5  # of the steps known already, the last ones are asked for again: an evaluation may add to them
WHOLE_EVERY_S = 60.0  # then all of them: a resumed run reports older steps again
PAGE_SIZE = 50
GROUP_SIZE = 200  # episodes shown of one group


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
    healing: Sequence[EventView]
    """How the losses of leased sandboxes ended, newest first."""
    quarantine: Sequence[QuarantineView]


async def fleet(rock: Rock, _: Fleet | None) -> Fleet:
    of_machines = asyncio.gather(rock.health(), rock.nodes(), rock.quarantine())
    of_sandboxes = asyncio.gather(rock.sandboxes(), rock.sandboxes(state=SandboxState.FAILED))
    kinds = ("", "sandbox.failed", *HEALED)
    of_events = asyncio.gather(*(rock.events(limit=EVENTS, kind=kind or None) for kind in kinds))
    (health, nodes, quarantine), (living, failed), events = await asyncio.gather(of_machines, of_sandboxes, of_events)
    latest, failures, *healing = events
    healed = sorted((e for some in healing for e in some), key=lambda e: (e.at, e.id), reverse=True)
    return Fleet(health, nodes, living, failed, latest, failures, healed, quarantine)


async def runs(rock: Rock, _: list[RunView] | None) -> list[RunView]:
    return await rock.runs()


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    run: RunView
    points: Mapping[int, MetricPoint]
    metrics: pd.DataFrame
    ledger: LedgerView
    events: Sequence[EventView]
    whole_at_s: float
    """When all of the run's metrics were last read (monotonic)."""


async def run_snapshot(rock: Rock, run_id: str, previous: RunSnapshot | None) -> RunSnapshot:
    known = dict(previous.points) if previous is not None else {}
    whole_at_s = previous.whole_at_s if previous is not None else 0.0
    if not known or time.monotonic() - whole_at_s > WHOLE_EVERY_S:
        known, whole_at_s = {}, time.monotonic()
    since = max(0, max(known) - RECHECKED_STEPS) if known else 0
    run, ledger, events, new = await asyncio.gather(
        rock.run(run_id),
        rock.ledger(run_id),
        rock.events(limit=RUN_EVENTS, run_id=run_id),
        rock.metrics(run_id, since_step=since),
    )
    fresh = {point.step: point for point in new}
    if previous is not None and known and all(known.get(step) == point for step, point in fresh.items()):
        return RunSnapshot(run, previous.points, previous.metrics, ledger, events, whole_at_s)
    points = {**known, **fresh}
    return RunSnapshot(run, points, metric_frame(points.values()), ledger, events, whole_at_s)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What incidents are made of, and what changed. Of each kind of event the latest ``EVENTS``."""

    events: Sequence[EventView]
    failed: Sequence[SandboxView]
    orphans: Sequence[EventView]
    """Sandboxes that nobody wanted and that were removed: leaks, had nobody looked."""


_OTHER_CHANGES = ("node.joined", "node.left", "node.drained", "env.built")
_RUN_CHANGES = ("run.starting", "run.paused", "run.failed", "run.interrupted")


async def trouble(rock: Rock, run_id: str) -> Trouble:
    """Of one run, or of all with an empty ``run_id``; what befell the platform is in both."""

    async def of(kinds: Sequence[str], run: str) -> list[EventView]:
        found = await asyncio.gather(*(rock.events(limit=EVENTS, kind=kind, run_id=run or None) for kind in kinds))
        return [event for some in found for event in some]

    own, shared, orphans, of_run, failed = await asyncio.gather(
        of(RUN_KINDS, run_id),
        of((*PLATFORM_KINDS, *_OTHER_CHANGES), ""),
        of(("sandbox.orphan",), ""),
        of(_RUN_CHANGES, ""),
        rock.sandboxes(state=SandboxState.FAILED, run_id=run_id or None),
    )
    of_run = [e for e in of_run if not run_id or e.subject == run_id]
    return Trouble([*own, *shared, *of_run], failed, orphans)


@dataclass(frozen=True, slots=True)
class Speed:
    """How long a run's environments take, and how long they should."""

    measured: Sequence[LatencyView]
    envs: Sequence[EnvView]


async def speed(rock: Rock, run_id: str) -> Speed:
    measured, envs = await asyncio.gather(rock.latencies(run_id), rock.envs())
    return Speed(measured, envs)


async def is_admin(rock: Rock) -> bool:
    """Whether this page's key may manage the fleet: the list of keys is an admin's to read."""
    try:
        await rock.keys()
    except (Forbidden, Unauthorized):
        return False
    return True


async def usage(rock: Rock, sandbox_ids: Sequence[str]) -> dict[str, SandboxStats]:
    """What each of them takes; without those that have ended, or whose runtime does not count."""

    async def one(sandbox_id: str) -> SandboxStats | None:
        try:
            return await rock.sandbox_stats(sandbox_id)
        except (Conflict, InvalidRequest, NotFound):
            return None

    found = await asyncio.gather(*(one(sandbox_id) for sandbox_id in sandbox_ids))
    return {name: stats for name, stats in zip(sandbox_ids, found, strict=True) if stats is not None}


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for. ``text``: words of a task, an episode, a reason or a sandbox; ``cause``: why it is void; empty
    fields match everything."""

    run_id: str
    phase: str = ""
    result: str = ""
    cause: str = ""
    reward_min: float | None = None
    reward_max: float | None = None
    text: str = ""
    page: int = 0


# Success is a property of completed and truncated episodes; the other results are outcomes.
_SUCCESS = {"success": True, "failure": False}


async def episodes(rock: Rock, search: Search) -> EpisodePage:
    """One page of matches, latest first, and how many there are: the platform looks through all of the run."""
    result = search.result or ("void" if search.cause else "")
    return await rock.episodes(
        search.run_id,
        phase=search.phase or None,
        outcome=result if result not in _SUCCESS else None,
        success=_SUCCESS.get(result),
        reward_min=search.reward_min,
        reward_max=search.reward_max,
        text=f"{search.text} {search.cause}".strip() or None,  # a void episode's reason begins with its cause
        limit=PAGE_SIZE,
        offset=search.page * PAGE_SIZE,
    )


@dataclass(frozen=True, slots=True)
class Story:
    """One episode with its turns, and what else tells of it."""

    episode: EpisodeRecord
    group: Sequence[EpisodeRecord]
    """Its group, itself included, without turns."""
    recovered: Sequence[EventView]
    rhythm: EpisodeRhythm | None


async def story(rock: Rock, run_id: str, episode_id: str) -> Story:
    """Raises NotFound (caller)."""

    async def rhythm() -> EpisodeRhythm | None:
        try:
            return await rock.rhythm(run_id, episode_id)
        except NotFound:
            return None

    async def siblings(episode: EpisodeRecord) -> Sequence[EpisodeRecord]:
        if not episode.group_id:
            return ()
        return (await rock.episodes(run_id, group=episode.group_id, limit=GROUP_SIZE)).episodes

    async def losses(episode: EpisodeRecord) -> list[EventView]:
        return await rock.events(limit=EVENTS, kind="lease.recovered", run_id=run_id) if episode.recoveries else []

    episode = await rock.episode(run_id, episode_id)
    group, recovered, recorded = await asyncio.gather(siblings(episode), losses(episode), rhythm())
    return Story(episode, group, recovered, recorded)
