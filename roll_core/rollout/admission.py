"""May another episode start now? The one place where the asynchronous ratio α is decided.

With N samples in a batch and the learner at version n, every sample of that batch must have been initiated by version
≥ n − α (ROLL Flash, arXiv 2510.11345, section 4): a bound per sample, never on the average. Invariants:

* samples in the buffer and in flight together never exceed ⌊(1+α)·N⌋;
* an episode starts only if the batch it would reach, were batches filled in the order of starting, still accepts it.

α = 0 therefore admits exactly one batch per version: synchronous training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Admission:
    """``alpha`` ≥ 0, fractions allowed; ``batch_samples`` is N, redundant samples included."""

    alpha: float
    batch_samples: int

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha must be a finite number >= 0, not {self.alpha}")
        if self.batch_samples < 1:
            raise ValueError(f"batch_samples must be >= 1, not {self.batch_samples}")

    @property
    def capacity(self) -> int:
        """⌊(1+α)·N⌋, computed from α's decimal digits: 0.7·10 in binary would round to 6."""
        return _capacity(self.alpha, self.batch_samples)

    def may_start(self, *, held: int, batches_ahead: int, engine_version: int, next_version: int) -> bool:
        """``held``: samples in the buffer and in flight. ``batches_ahead``: batches that come before the one this
        episode will be in. ``next_version``: the learner's version when it will train on the next batch it takes.
        ``engine_version``: the version that would initiate the episode."""
        return held < self.capacity and self.is_fresh(engine_version, next_version + batches_ahead)

    def is_fresh(self, init_version: int, train_version: int) -> bool:
        return train_version - init_version <= self.alpha

    def oldest_fresh(self, train_version: int) -> int:
        """The lowest init version that a batch trained at ``train_version`` accepts."""
        return train_version - math.floor(self.alpha)


@lru_cache(maxsize=64)
def _capacity(alpha: float, batch_samples: int) -> int:
    """Asked for at every start, and seldom of another α."""
    return math.floor((1 + Fraction(str(alpha))) * batch_samples)
