"""When a reset has taken so long that a second sandbox is tried beside it. Pure.

After the 95th percentile of the resets seen, the one that hangs is more likely slow for a reason of its own (a cold
cache, a starved machine) than about to end; a second one then usually wins, at the cost of one lease in twenty.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

Hedge = Literal["auto"] | bool

REMEMBER = 200
ENOUGH = 20
# Below this another lease and reset cost more than they can save.
LEAST_S = 0.25
# Of the time-out, while too few resets have been seen; only where a hedge is asked for in any case.
UNSEEN_SHARE = 0.25


class ResetTimes:
    """The resets of one environment as one client saw them."""

    def __init__(self) -> None:
        self._seen_s: deque[float] = deque(maxlen=REMEMBER)
        self.hedges = 0
        """How often a second sandbox was tried."""
        self.wins = 0
        """How often it was the first to be ready."""

    def note(self, took_s: float) -> None:
        self._seen_s.append(took_s)

    @property
    def p95_s(self) -> float | None:
        """None until enough were seen."""
        if len(self._seen_s) < ENOUGH:
            return None
        return sorted(self._seen_s)[int(0.95 * (len(self._seen_s) - 1))]

    def hedge_after_s(self, hedge: Hedge, timeout_s: float) -> float | None:
        """How long to wait before trying a second; None: never."""
        if not hedge:
            return None
        if (p95_s := self.p95_s) is not None:
            return max(LEAST_S, p95_s)
        return max(LEAST_S, UNSEEN_SHARE * timeout_s) if hedge is True else None
