"""When to try again: exponential backoff with full jitter.

After the n-th failure in a row the wait is drawn uniformly from ``[0, min(cap, base · 2^(n-1))]``. Full jitter, because
the sandboxes that failed together (a daemon that restarted, a full disk) must not all come back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Beyond this exponent every sensible cap is reached; it keeps 2**n from becoming a huge number.
_MAX_EXPONENT = 32


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    base_s: float = 0.5
    cap_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"backoff needs 0 < base_s <= cap_s, got base_s={self.base_s}, cap_s={self.cap_s}")

    def ceiling_s(self, failures: int) -> float:
        """The longest wait after ``failures`` failures in a row; 0 when there was none."""
        if failures <= 0:
            return 0.0
        return min(self.cap_s, self.base_s * 2.0 ** min(failures - 1, _MAX_EXPONENT))

    def delay_s(self, failures: int, rng: random.Random) -> float:
        return rng.uniform(0.0, self.ceiling_s(failures))


class Backoff:
    """The state for one thing that is tried again and again. The clock's time is passed to every call."""

    def __init__(self, policy: BackoffPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self.failures = 0
        self.retry_at = float("-inf")

    def failed(self, now: float) -> float:
        """Book a failure; returns the seconds to wait."""
        self.failures += 1
        delay_s = self._policy.delay_s(self.failures, self._rng)
        self.retry_at = now + delay_s
        return delay_s

    def succeeded(self) -> None:
        self.failures = 0
        self.retry_at = float("-inf")

    def may_try(self, now: float) -> bool:
        return now >= self.retry_at
