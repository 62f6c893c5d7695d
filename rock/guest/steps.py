"""How long the environment's steps took, since the guest began: counts per latency, rounded, so that they stay few.

Cumulative: whoever asks twice takes the difference, and nobody's asking takes anything from anybody else.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

# Neighbours differ by a fifth: near enough for a median, and 20 buckets cover what one environment does.
_PER_OCTAVE = 4


class StepTimes:
    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0
        self._buckets: dict[Any, Any] = {}

    def add(self, seconds: float) -> None:
        self.count += 1
        self.sum_s += seconds
        self.max_s = max(self.max_s, seconds)
        bucket = round(_PER_OCTAVE * math.log2(max(seconds, 1e-6) * 1e6))
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def summary(self) -> dict[str, Any]:
        """``us``: whole microseconds, as text because JSON's keys are, to how many steps took about that."""
        us = {"%d" % round(2 ** (bucket / _PER_OCTAVE)): count for bucket, count in self._buckets.items()}
        return {"count": self.count, "sum_s": round(self.sum_s, 6), "max_s": round(self.max_s, 6), "us": us}
