"""What is counted as it happens, for Prometheus: how often, and how long in fixed buckets. No library, no lock."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

CLAIM_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REQUEST_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Histogram:
    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(self._edges) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper edge, as Prometheus wants them."""
        total, out = 0, []
        for edge, count in zip((*map(str, self._edges), "+Inf"), self._counts, strict=True):
            total += count
            out.append((edge, float(total)))
        return out


@dataclass(slots=True)
class Counters:
    """Of leases."""

    granted: int = 0
    released: int = 0
    expired: int = 0
    lost: int = 0
    refused: int = 0
    recovered: int = 0
    """Times another sandbox took the place of a lost one."""
    by_cause: Counter[str] = field(default_factory=Counter)
    """The same, by the cause of the loss."""
    claim_seconds: Histogram = field(default_factory=lambda: Histogram(CLAIM_BUCKETS_S))
    """From the request to the sandbox, storing the lease included."""
