"""What a learner is: turns a batch into a new version of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from roll_core.types import TrainBatch, Weights


class Learner(Protocol):
    @property
    def version(self) -> int:
        """Number of training steps taken; 0 before the first."""
        ...

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        """All updates on one batch (micro-batched inside); returns metrics named ``learner/…``.

        ``progress``: the share of the run that is over, 0 to 1, for schedules.
        """
        ...

    def weights(self) -> Weights:
        """A copy of the current parameters, on the CPU."""
        ...

    def save(self, directory: Path) -> None:
        """Model, optimizer, schedule and RNG state; loading it back continues bit for bit."""
        ...

    def load(self, directory: Path) -> None: ...
