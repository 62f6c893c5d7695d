"""When to start again after episodes were lost: at once after single losses, more and more slowly in an outage.

Pure; the clock's reading and the random number generator are passed in.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class OutageGuard:
    """Counts losses in a row. ``free`` of them cost nothing: a killed sandbox is replaced at once, and all of the
    sandboxes may be lost together without the platform being down."""

    free: int
    rng: random.Random
    base_s: float = 0.5
    cap_s: float = 15.0
    streak: int = 0
    _since_s: float | None = field(default=None)
    _not_before_s: float = 0.0

    def lost(self, now_s: float) -> None:
        self.streak += 1
        if self._since_s is None:
            self._since_s = now_s
        if self.streak > self.free:
            ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.streak - self.free, 16))
            # Half of the delay is fixed: full jitter alone may draw zero, which would be a busy loop.
            self._not_before_s = max(self._not_before_s, now_s + ceiling * self.rng.uniform(0.5, 1.0))

    def succeeded(self) -> None:
        self.streak = 0
        self._since_s = None
        self._not_before_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until another start is allowed; 0 when it is now."""
        return max(0.0, self._not_before_s - now_s)

    def down_for_s(self, now_s: float) -> float:
        """Seconds since the first loss after the last success; 0 when nothing is wrong."""
        return 0.0 if self._since_s is None else now_s - self._since_s
