"""Latencies as histograms that add up: buckets on a logarithmic scale, and quantiles read from their counts. Pure.

Invariants: a bucket's value differs from what fell into it by at most 4.5 % (16 buckets to a doubling of time); counts
of several sources may be added; a quantile lies between the least and the greatest that was seen, bucketed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PER_DOUBLING = 16
LEAST_S = 1e-5
"""What is quicker counts as this: below it a clock measures itself."""
MOST_S = 1e5


def bucket_of(seconds: float) -> int:
    """Number of the bucket. NaN raises ValueError: a latency that is none must not be counted."""
    if math.isnan(seconds):
        raise ValueError("a latency of NaN seconds; expected a number")
    return round(PER_DOUBLING * math.log2(min(max(seconds, LEAST_S), MOST_S) / LEAST_S))


def seconds_of(bucket: int) -> float:
    """The middle of a bucket."""
    return float(LEAST_S * 2.0 ** (bucket / PER_DOUBLING))


def quantile(counts: Mapping[int, int], share: float) -> float:
    """The nearest-rank quantile in seconds. ``counts`` by bucket, at least one above 0. ``share`` from 0 to 1."""
    total = sum(counts.values())
    if total < 1 or not 0 <= share <= 1:
        raise ValueError(f"expected counts and a share from 0 to 1, got {total} counts and share {share}")
    rank, seen = max(1, math.ceil(share * total)), 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return seconds_of(bucket)
    raise AssertionError("unreachable: the ranks of all counts were seen")
