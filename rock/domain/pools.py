"""What a node starts and evicts next, given its warm pools, the claims that wait, and the room it has. Pure.

Invariants of every plan:
- never more than ``slots`` starts (starting containers together is no quicker beyond a few), never more sandboxes than
  ``room`` after its evictions, never more than ``refills`` starts that no claim waits for;
- claims that wait come before pools that want to be warm, in the order they are given (:mod:`rock.domain.fairness`);
  one that cannot be served now (its pool backs off) does not hold up those behind it;
- only idle ready sandboxes are evicted: a pool's ``surplus``, and otherwise one for each claim that waits in another
  pool of a full node;
- a pool that backs off gets none, and one that has failed lately gets at most one at a time.

How many ready sandboxes a pool wants is :mod:`rock.domain.sizing`'s to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolState:
    digest: str
    target: int
    """Ready sandboxes it wants, beyond those that claims wait for."""
    ready: int
    starting: int
    surplus: int = 0
    """Ready sandboxes that may go if nobody waits for them."""
    backing_off: bool = False
    failing: bool = False
    """Its last sandbox failed: try one at a time until one lives."""


@dataclass(frozen=True, slots=True)
class Plan:
    starts: dict[str, int] = field(default_factory=dict)
    evictions: dict[str, int] = field(default_factory=dict)
    """Idle ready sandboxes to remove, by pool: its surplus, or to make room for a claim elsewhere."""
    refills: int = 0
    """Starts that no claim waits for."""


def plan(pools: Sequence[PoolState], queue: Sequence[str], *, slots: int, room: int, refills: int) -> Plan:
    """``queue``: the pools of the claims that wait, in the order in which they should be served. ``slots``: starts that
    may begin now. ``room``: sandboxes that may still be added before the node is full. ``refills``: how many of the
    starts may be for no claim yet."""
    made = _Making(pools, Counter(queue), max(0, slots), max(0, room))
    coming = {pool.digest: pool.ready + pool.starting for pool in pools}
    for digest in queue:
        if not made.slots:
            break
        if coming[digest]:
            coming[digest] -= 1  # one on its way will be its
        else:
            made.start(digest, may_evict=True)

    refilled = 0
    progress = True
    while refilled < refills and progress:
        progress = False
        for pool in pools:
            if refilled < refills and made.lacks(pool) and made.start(pool.digest, may_evict=False):
                refilled, progress = refilled + 1, True
    return Plan(+made.starts, +made.evictions, refilled)


class Refills:
    """The rate of starts that no claim waits for (a token bucket): pools that fill up must not take the machine from
    the sandboxes that work."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._at = float(burst), 0.0

    def available(self, now: float) -> int:
        self._tokens = min(float(self._burst), self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        return int(self._tokens)

    def spend(self, starts: int) -> None:
        self._tokens -= starts


class _Making:
    """A plan while it is made."""

    def __init__(self, pools: Sequence[PoolState], waiting: Counter[str], slots: int, room: int) -> None:
        self._pools = {pool.digest: pool for pool in pools}
        self._waiting = waiting
        self.slots, self._room = slots, room
        self.starts: Counter[str] = Counter()
        self.evictions = Counter({p.digest: max(0, min(p.surplus, p.ready - waiting[p.digest])) for p in pools})

    def lacks(self, pool: PoolState) -> bool:
        has = pool.ready + pool.starting + self.starts[pool.digest]
        return has < self._waiting[pool.digest] + pool.target

    def start(self, digest: str, *, may_evict: bool) -> bool:
        """One more of the pool, if it and the node allow it."""
        pool = self._pools[digest]
        trying = pool.starting + self.starts[digest]
        if not self.slots or pool.backing_off or (pool.failing and trying):
            return False
        if self._room:
            self._room -= 1
        elif may_evict and (victim := self._idle_elsewhere(digest)) is not None:
            self.evictions[victim] += 1
        else:
            return False
        self.starts[digest] += 1
        self.slots -= 1
        return True

    def _idle_elsewhere(self, digest: str) -> str | None:
        """The pool with the most idle ready sandboxes to spare."""

        def spare(pool: PoolState) -> int:
            return pool.ready - self.evictions[pool.digest] - self._waiting[pool.digest]

        idle = [pool for pool in self._pools.values() if pool.digest != digest and spare(pool) > 0]
        return max(idle, key=spare).digest if idle else None
