"""What a node starts and evicts next, given its warm pools, the claims that wait, and the room it has. Pure.

Invariants of every plan:
- never more than ``slots`` starts (starting containers together is no quicker beyond a few), never more sandboxes than
  ``room`` after its evictions;
- claims that wait come before pools that want to be warm, and among pools with waiting claims each gets a start before
  any gets a second one, so that one image cannot starve another;
- only idle ready sandboxes are evicted: those of a drained pool (target 0), and otherwise one for each claim that waits
  in another pool of a full node. What a pool has above its target is kept: it was started for a demand that may return;
- a pool that backs off gets none, and one that has failed lately gets at most one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# A pool may grow to this many times its configured target when claims come faster than sandboxes start.
MAX_GROWTH = 4


@dataclass(frozen=True, slots=True)
class PoolState:
    digest: str
    target: int
    ready: int
    starting: int
    waiting: int
    """Claims that wait for a sandbox of this pool."""
    backing_off: bool = False
    failing: bool = False
    """Its last sandbox failed: try one at a time until one lives."""


@dataclass(frozen=True, slots=True)
class Plan:
    starts: dict[str, int] = field(default_factory=dict)
    evictions: dict[str, int] = field(default_factory=dict)
    """Idle ready sandboxes to remove, by pool: of a drained pool, or to make room for a claim elsewhere."""


def wanted_ready(target: int, claims_per_s: float, start_s: float) -> int:
    """How many ready sandboxes a pool should keep: by Little's law, the claims that arrive while one starts.

    Never below the configured ``target`` and never above ``MAX_GROWTH`` times it; a target of 0 stays 0.
    """
    if target <= 0:
        return 0
    return max(target, min(MAX_GROWTH * target, math.ceil(claims_per_s * start_s)))


def plan(pools: Sequence[PoolState], *, slots: int, room: int) -> Plan:
    """``slots``: starts that may begin now. ``room``: sandboxes that may still be added before the node is full."""
    starts = {pool.digest: 0 for pool in pools}
    evictions = {p.digest: 0 if p.target else max(0, p.ready - p.waiting) for p in pools}
    slots, room = max(0, slots), max(0, room)

    def still_allowed(pool: PoolState) -> bool:
        if pool.backing_off:
            return False
        return not pool.failing or pool.starting + starts[pool.digest] == 0

    def idle_elsewhere(pool: PoolState) -> str | None:
        idle = [p for p in pools if p.digest != pool.digest and p.ready - evictions[p.digest] > p.waiting]
        return max(idle, key=lambda p: p.ready - evictions[p.digest]).digest if idle else None

    progress = True
    while slots and progress:
        progress = False
        for pool in pools:
            served = pool.ready + pool.starting + starts[pool.digest]
            if not slots or pool.waiting <= served or not still_allowed(pool):
                continue
            if room:
                room -= 1
            elif (victim := idle_elsewhere(pool)) is not None:
                evictions[victim] += 1
            else:
                continue
            starts[pool.digest] += 1
            slots -= 1
            progress = True

    progress = True
    while slots and room and progress:
        progress = False
        for pool in pools:
            served = pool.ready + pool.starting + starts[pool.digest]
            if not slots or not room or served >= pool.waiting + pool.target or not still_allowed(pool):
                continue
            starts[pool.digest] += 1
            slots, room, progress = slots - 1, room - 1, True

    return Plan({d: n for d, n in starts.items() if n}, {d: n for d, n in evictions.items() if n})
