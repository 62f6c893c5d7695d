"""How many ready sandboxes a warm pool keeps: enough for the claims that come while one starts. Pure.

A claim hits when fewer claims came within the last *lead time* (the p90 of the seconds a start takes) than the pool
keeps in all, ready and starting together: every claim starts its replacement at once, so what was taken longer ago is
back. The level a pool needs is therefore a quantile of the claims per lead time, and it is estimated twice:

- from the claim rate (a moving average), as if claims came independently: by Little's law rate x lead on average, and
  the quantile of the Poisson distribution around it as the safety. Right for a steady load, after few claims already;
- from what was seen: the same quantile of the claims that came within one lead time of each other over the last
  minutes. Right for bursts, such as a trainer that starts its sixteen episodes of a group all at once.

The larger of the two counts. The level rises at once and falls slowly: only after a hold, then step by step, and a pool
that is above its level first waits for claims to take what is too much before anything is removed. So a steady load,
whose estimates always wobble a little, never has sandboxes removed and started again.

Invariants: minimum <= level <= maximum; at least ``ready`` while the pool is in use; after ``idle_after_s`` without a
claim it is the minimum.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

# A pool without a maximum of its own may grow to this many times what is configured as ready.
MAX_GROWTH = 8
_START_SAMPLES = 64
_CLAIM_SAMPLES = 512
# Before the first start: what a container takes on a small machine.
_UNKNOWN_START_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What is configured for a pool."""

    ready: int = 0
    """Kept ready while the pool is in use."""
    minimum: int = 0
    """Kept ready even when nobody has claimed for long."""
    maximum: int = 0
    """Kept ready at most, however high the demand; 0: ``MAX_GROWTH`` times ``ready``."""

    @property
    def most(self) -> int:
        return max(self.ready, self.minimum, self.maximum or MAX_GROWTH * self.ready)


@dataclass(frozen=True, slots=True)
class SizingPolicy:
    hit_rate: float = 0.99
    """The share of claims that should find a ready sandbox."""
    rate_memory_s: float = 30.0
    burst_memory_s: float = 180.0
    """Longer than the pause between two bursts of a trainer, so that it finds its pool as large as it left it."""
    hold_s: float = 60.0
    """The level falls only when less was enough for this long."""
    step_s: float = 10.0
    """Then by one each time this passes."""
    spare_s: float = 30.0
    """What is above the level is removed, one at a time, when no claim has taken it for this long."""
    idle_after_s: float = 900.0


class StartTimes:
    """The seconds that the last starts took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_START_SAMPLES)

    def note(self, start_s: float) -> None:
        self._seconds.append(start_s)

    @property
    def p90_s(self) -> float:
        if not self._seconds:
            return _UNKNOWN_START_S
        ordered = sorted(self._seconds)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


class Demand:
    """The claims of one pool."""

    def __init__(self, policy: SizingPolicy) -> None:
        self._policy = policy
        self._rate_per_s = 0.0
        self._rated_at = 0.0
        self._lately: deque[float] = deque()
        """Claims within the last lead time."""
        self._seen: deque[tuple[float, int]] = deque(maxlen=_CLAIM_SAMPLES)
        """For each claim of the burst memory: how many came within one lead time up to it, itself included."""

    def note(self, now: float, lead_s: float) -> None:
        self._rate_per_s = self.rate_per_s(now) + 1.0 / self._policy.rate_memory_s
        self._rated_at = now
        self._lately.append(now)
        while now - self._lately[0] > lead_s:
            self._lately.popleft()
        self._seen.append((now, len(self._lately)))

    def rate_per_s(self, now: float) -> float:
        return self._rate_per_s * math.exp(-max(0.0, now - self._rated_at) / self._policy.rate_memory_s)

    def level(self, now: float, lead_s: float, most: int) -> int:
        """The least level that serves the wanted share of claims, and at most ``most``."""
        while self._seen and now - self._seen[0][0] > self._policy.burst_memory_s:
            self._seen.popleft()
        steady = poisson_level(self.rate_per_s(now) * lead_s, self._policy.hit_rate, most)
        if not self._seen:
            return min(most, steady)
        counts = sorted(count for _, count in self._seen)
        burst = counts[min(len(counts) - 1, math.ceil(self._policy.hit_rate * len(counts)) - 1)]
        return min(most, max(steady, burst))


def poisson_level(mean: float, hit_rate: float, most: int) -> int:
    """The least n <= ``most`` with P(N < n) >= ``hit_rate``, where N is Poisson of ``mean``: claims in a lead time."""
    if mean < 1e-6:
        return 0
    term = below = math.exp(-mean)  # of a mean beyond 700 it is 0, and the answer `most`, as it should be
    for level in range(1, most):
        if below >= hit_rate:
            return level
        term *= mean / level
        below += term
    return most


@dataclass(slots=True)
class Sizer:
    """The level of one pool over time. Ask often: it is what makes the slow falling slow."""

    policy: SizingPolicy = field(default_factory=SizingPolicy)
    limits: PoolLimits = field(default_factory=PoolLimits)
    starts: StartTimes = field(default_factory=StartTimes)
    used_at: float = 0.0
    level: int = 0
    _demand: Demand = field(init=False)
    _enough_at: float = 0.0
    """When the demand last asked for the whole level, or the level last fell."""
    _spare_since: float | None = None

    def __post_init__(self) -> None:
        self._demand = Demand(self.policy)

    def note_claim(self, now: float) -> None:
        self.used_at = now
        self._demand.note(now, self.starts.p90_s)

    def idle(self, now: float) -> bool:
        return now - self.used_at >= self.policy.idle_after_s

    def target(self, now: float, *, may_grow: bool = True) -> int:
        """How many to keep. Without ``may_grow`` (the machine is short of memory) never more than is configured."""
        limits = self.limits
        floor = limits.minimum if self.idle(now) else max(limits.ready, limits.minimum)
        wanted = floor
        if may_grow and not self.idle(now):
            wanted = max(floor, self._demand.level(now, self.starts.p90_s, limits.most))
        if wanted >= self.level or not may_grow or self.idle(now) or self.level > limits.most:
            self.level, self._enough_at = wanted, now
        elif now - self._enough_at >= self.policy.hold_s:
            self.level -= 1
            self._enough_at = now - self.policy.hold_s + self.policy.step_s
        return self.level

    def surplus(self, now: float, *, ready: int, starting: int, waiting: int) -> int:
        """How many of the ready ones may go now: those above the level that nobody has wanted for a while."""
        if self.level == 0:
            return ready  # drained: nobody is to have one of these any more
        if ready == 0 or ready + starting - waiting <= self.level:
            self._spare_since = None
            return 0
        if self._spare_since is None:
            self._spare_since = now
        if now - self._spare_since < self.policy.spare_s:
            return 0
        self._spare_since = now - self.policy.spare_s + self.policy.step_s
        return 1
