"""Who takes part in a learner step: the learner turns a batch into a new version of the policy; critics say what a
state is worth; the attention role reads what the policy attends to.

Shape legend: M critics, B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from roll_core.types import TrainBatch, Weights

if TYPE_CHECKING:
    from roll_core.learners.actor_attn import Reading


@dataclass(frozen=True, slots=True)
class Scores:
    """What a policy says of a batch's tokens, BT on the CPU, 0 outside the mask; no gradient."""

    logprobs_BT: Tensor
    entropy_BT: Tensor
    """Nats."""
    reference_logprobs_BT: Tensor | None = None
    """Of the policy that ``kl_coef`` ties to; None where there is none."""


class Role(Protocol):
    """What may be lost, and begin again from what was saved."""

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...

    def close(self) -> None:
        """End the processes it has, if any. May be called again."""
        ...


class Learner(Role, Protocol):
    @property
    def version(self) -> int:
        """Number of training steps taken; 0 before the first."""
        ...

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        """All updates on one batch (micro-batched inside); returns metrics named ``learner/…``.

        ``progress``: the share of the run that is over, 0 to 1, for schedules.
        """
        ...

    def skip_step(self) -> dict[str, float]:
        """A step in which the policy does not learn: a new version with the same weights. Metrics as above."""
        ...

    def score(self, batch: TrainBatch) -> Scores:
        """The present policy's view of the batch, at the sampling temperature. Changes nothing."""
        ...

    def weights(self) -> Weights:
        """A copy of the current parameters, on the CPU."""
        ...

    def save(self, directory: Path) -> None:
        """Model, optimizer, schedule and RNG state; loading it back continues bit for bit."""
        ...


@dataclass(frozen=True, slots=True)
class Estimate:
    """What critics say of a batch; no gradient."""

    values_MBT: Tensor
    """Value of the state before each response token was sampled, 0 outside the mask."""
    final_MB: Tensor
    """Value of the state after each row's last response token: what a truncated episode bootstraps from, by
    :func:`roll_core.algorithms.critics.with_bootstrap`."""


class Critics(Role, Protocol):
    """M value functions over one batch (AsyPPO, arXiv 2510.01656); M = 1 is an ordinary critic."""

    def values(self, batch: TrainBatch) -> Tensor:
        """V_MBT of the present critics, 0 outside the mask; no gradient."""
        ...

    def estimate(self, batch: TrainBatch) -> Estimate:
        """:meth:`values`, and the values in which the rows end, of the same pass."""
        ...

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """Update every critic on its share of the batch; returns metrics named ``critic/…``."""
        ...


class Reference(Role, Protocol):
    """The policy that ``kl_coef`` ties to, where it is not in the learner."""

    def logprobs(self, batch: TrainBatch) -> Tensor:
        """BT, 0 outside the mask, on the CPU, at the sampling temperature; no gradient."""
        ...


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Attention rhythm of the response tokens (arXiv 2510.13554), BT, 0 outside the mask."""

    waad_BT: Tensor
    """Windowed average attention distance of the local heads."""
    fai_BT: Tensor
    """Future attention influence through the global heads."""


class ActorAttn(Protocol):
    """A copy of the policy that gives its attention away (``actor_attn``)."""

    @property
    def last(self) -> Reading | None:
        """The batch that was read last."""
        ...

    def load_weights(self, weights: Weights) -> None:
        """Be the policy of this version."""
        ...

    def rhythm(self, batch: TrainBatch) -> Rhythm: ...

    def close(self) -> None: ...
