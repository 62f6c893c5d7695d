"""What the page and the report say of a run in numbers: the tiles, and what the lines of its chart are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dashboard import figures, markup, text
from dashboard.frames import MAX_POINTS, NOW_STEPS, state_counts
from dashboard.palette import Tone
from dashboard.sentences import PACE_STEPS, VOID_WORRIES, RunFacts
from dashboard.snapshots import Fleet
from rock.domain.nodes import NodeStanding
from rock.sdk import EventView, SandboxState

RESTARTS = frozenset({"control.restarted", "guardian.restarted"})
RESTART_WINDOW = timedelta(hours=24)


def run_tiles(facts: RunFacts, *, active: bool) -> str:
    window = f"mean of the last {NOW_STEPS} steps"
    worried = facts.void_rate is not None and facts.void_rate > VOID_WORRIES
    total = f" of {facts.total_steps:,}" if facts.total_steps else ""
    return markup.tiles(
        [
            ("step", f"{facts.step:,}", f"{total.strip() or 'no end set'}, {text.duration(facts.step_s)} each", None),
            ("success", text.percent(facts.success), window, Tone.GOOD if facts.success is not None else None),
            ("reward", text.number(facts.reward), window, None),
            (
                "void",
                text.percent(facts.void_rate, 1),
                f"{facts.voids:,} of {text.plural(facts.episodes, 'episode')}",
                Tone.VOID if worried else None,
            ),
            ("tokens/s", text.number(facts.tokens_per_s), window, None),
            ("staleness", text.number(facts.staleness, 2), f"versions, max {text.number(facts.staleness_max)}", None),
            ("time left", text.duration(facts.left_s), f"from the last {PACE_STEPS} steps", None)
            if facts.left_s is not None
            else ("took so far" if active else "took", text.duration(facts.took_s), "from its creation on", None),
        ]
    )


def outcome_window(points: int) -> str:
    """What the lines of a chart with this many points are."""
    parts = ["training episodes of each step"]
    if points >= figures.SMOOTH_FROM:
        parts.append(f"bold: mean of {NOW_STEPS} steps")
    if points > MAX_POINTS:
        parts.append(f"one point is the mean of {-(-points // MAX_POINTS)} steps")
    return "; ".join(parts)


def fleet_tiles(fleet: Fleet, orphans: Sequence[EventView], events: Sequence[EventView], now: datetime) -> str:
    """Pools, starts, leases, leaks and restarts. ``orphans``: sandboxes removed because nobody wanted them."""
    pools = [pool for node in fleet.nodes for pool in node.pools]
    ready, wanted = sum(p.ready for p in pools), sum(max(p.level, p.target) for p in pools)
    waiting = sum(p.waiting for p in pools)
    starting, at_once = sum(n.starting for n in fleet.nodes), sum(n.max_starting for n in fleet.nodes)
    counts = state_counts(fleet.sandboxes)
    leased = counts.get(SandboxState.LEASED, 0) + counts.get(SandboxState.SUSPECT, 0)
    capacity = sum(n.capacity for n in fleet.nodes)
    since = text.utc(now) - RESTART_WINDOW
    leaks = sum(1 for e in orphans if text.utc(e.at) >= since)
    restarts = sum(1 for e in events if e.kind in RESTARTS and text.utc(e.at) >= since)
    sick = [n.name for n in fleet.nodes if not n.healthy or n.standing is not NodeStanding.UP]
    return markup.tiles(
        [
            ("nodes", f"{len(fleet.nodes) - len(sick)} of {len(fleet.nodes)}", ", ".join(sick) or "all up",
             Tone.VOID if sick else Tone.GOOD),
            ("warm pools", f"{ready:,} of {wanted:,}", f"ready; {waiting:,} claims wait",
             Tone.VOID if waiting else None),
            ("starting", f"{starting:,}", f"of {at_once:,} at once", None),
            ("leased", f"{leased:,}", f"of room for {capacity:,}", None),
            ("leaks", f"{leaks:,}", "removed in 24 h", Tone.VOID if leaks else None),
            ("restarts", f"{restarts:,}", "of platform and guardian in 24 h", Tone.VOID if restarts else None),
        ]
    )  # fmt: skip
