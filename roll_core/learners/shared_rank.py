"""One process of a learner that shares a model out, as far as it does not matter how.

Invariants: every rank is given the same calls with the same arguments and makes the same decisions; the rows of an
update are dealt to the ranks, and losses and gradients of all are summed, so that the result is that of one process
with the whole batch; metrics are of all ranks together.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from roll_core.learners.base import Scores
from roll_core.learners.batching import row_lengths
from roll_core.learners.config import LearnerConfig
from roll_core.learners.logprobs import Scored
from roll_core.learners.objective import Objective, Step
from roll_core.learners.torch_learner import to_device
from roll_core.types import TrainBatch


class SharedRank(ABC):
    """What :class:`~roll_core.learners.shared.SharedLearner` calls, in every process alike. Needs an initialised
    ``torch.distributed``."""

    packed = False
    """Whether rows lie end to end, so that no position is padding."""

    def __init__(self, config: LearnerConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.has_reference = bool(config.kl_coef) and not config.reference_given
        self.objective = Objective(config, has_reference=bool(config.kl_coef))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.version = 0
        self.updates = 0

    # -- what a way of sharing has of its own ----------------------------------------------------------------------

    @abstractmethod
    def _update_on(self, step: Step, rows: list[int], lr: float) -> None:
        """One optimizer update on ``rows``, told to ``step``. ``lr`` before the warm-up."""

    @abstractmethod
    def _scores(
        self, batch: TrainBatch, lengths: list[int], only: list[int] | None = None, *, reference: bool = False
    ) -> Scored:
        """Of the rows ``only`` (all of them), computed by all ranks together, known to every rank; no gradient.
        ``reference``: of the policy that ``kl_coef`` ties to."""

    @abstractmethod
    def write_weights(self, file: Path) -> None:
        """The parameters under Hugging Face's names, in one safetensors file that the first rank writes."""

    @abstractmethod
    def save(self, directory: Path) -> None: ...

    @abstractmethod
    def load(self, directory: Path) -> int:
        """The version that was saved. Raises CheckpointError when it is missing, torn, or of another model."""

    def _counts(self) -> bool:
        """Whether what this rank counted is not what another one counted, too."""
        return True

    # -- what all have ---------------------------------------------------------------------------------------------

    def train_step(self, batch: TrainBatch, progress: float) -> dict[str, float]:
        """As :meth:`~roll_core.learners.base.Learner.train_step`; whole on the first rank."""
        begin_s = time.perf_counter()
        lengths = row_lengths(batch.mask_BT)
        batch = to_device(batch, self.device)
        telling = self.objective.telling(batch)
        reference_BT = batch.reference_logprobs_BT
        if self.objective.penalised and reference_BT is None:
            reference_BT = self._scores(batch, lengths, reference=True).logprobs_BT
        prox_BT = self.objective.given_prox(batch)
        if self.objective.needs_prox(batch):
            prox_BT = self._scores(batch, lengths, sorted(telling)).logprobs_BT
        step = Step(batch, lengths, telling, prox_BT, reference_BT, self.version, packed=self.packed)
        lr = self.config.lr * self.objective.decay(progress)
        for _ in range(self.config.epochs):
            for rows in self.objective.minibatches(len(lengths), self.generator):
                self._update_on(step, rows, lr)
        self.version += 1
        self._merge(step)
        lr *= self.objective.rise(max(1, self.updates))
        return self.objective.metrics(step, lr=lr, seconds=time.perf_counter() - begin_s)

    def _merge(self, step: Step) -> None:
        """Bring together on the first rank what all counted."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (dict(step.totals), step.mismatch) if self._counts() else None)
        if dist.get_rank() == 0:
            for index, counted in enumerate(found):
                if index and counted is not None:
                    step.merge(*counted)

    def skip_step(self) -> None:
        self.version += 1

    def score(self, batch: TrainBatch) -> Scores | None:
        """As :meth:`~roll_core.learners.base.Learner.score`; from the first rank alone, for all have the same."""
        lengths = row_lengths(batch.mask_BT)
        batch = to_device(batch, self.device)
        own = self._scores(batch, lengths)
        reference_BT: Tensor | None = None
        if self.has_reference:
            reference_BT = self._scores(batch, lengths, reference=True).logprobs_BT.cpu()
        if dist.get_rank():
            return None
        return Scores(own.logprobs_BT.cpu(), own.entropy_BT.cpu(), reference_BT)
