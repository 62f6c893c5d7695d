"""Restart intensity (Erlang/OTP's rule): what fails more than N times within a window is not restarted, but escalated.

Backoff answers "when again?", intensity answers "is trying again the right thing at all?". A supervisor that keeps
restarting what cannot live hides the fault and burns the machine; beyond this rate the level above has to decide.
Pure: the clock's time is passed to every call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IntensityPolicy:
    max_failures: int = 3
    window_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_failures < 0 or self.window_s <= 0:
            raise ValueError(
                "restart intensity needs max_failures >= 0 and window_s > 0, "
                f"got max_failures={self.max_failures}, window_s={self.window_s}"
            )


class Intensity:
    """The failures of one thing. Remembers at most ``max_failures + 1`` of them."""

    def __init__(self, policy: IntensityPolicy | None = None) -> None:
        self.policy = policy or IntensityPolicy()
        self._failed_at: deque[float] = deque(maxlen=self.policy.max_failures + 1)

    def failed(self, now: float) -> bool:
        """Book a failure. True: escalate; this was one more than the policy allows within its window."""
        self._failed_at.append(now)
        return self.exceeded(now)

    def exceeded(self, now: float) -> bool:
        return self.count(now) > self.policy.max_failures

    def count(self, now: float) -> int:
        """Failures within the window that ends now; of more than ``max_failures`` it only knows that it is more."""
        return sum(1 for at in self._failed_at if now - at < self.policy.window_s)

    def reset(self) -> None:
        self._failed_at.clear()
