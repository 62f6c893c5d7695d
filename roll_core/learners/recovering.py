"""A learner, or another role of its step, in other processes, replaced when they die. [ours]

What is lost with a learner, or with critics, is what happened since the last checkpoint, and that is known: the
batches of these steps. A new one loads the checkpoint, takes the steps again, and is where the old one was, for a step
depends on nothing but its state and its batch. So nothing is lost, nothing differs, and nobody else need notice.

Invariants: a call ends in its result or, when ``restarts`` are used up, in LearnerDead; an error that is not a death is
passed on and replaces nothing; a checkpoint that was given up half-way (a full disk) does not take the one before with
it; no copy of a checkpoint is made.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from roll_core.errors import CheckpointError, LearnerDead
from roll_core.learners.actor_attn import Reading
from roll_core.learners.base import ActorAttn, Critics, Estimate, Learner, Reference, Rhythm, Role, Scores
from roll_core.types import TrainBatch, Weights

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", bound=Role)

_KEPT = 2
"""Checkpoints remembered: the newest may turn out not to have been finished."""


@dataclass(slots=True)
class _Base:
    """Something to begin from, and the changes since. ``handle``: a checkpoint's directory, which may be renamed after
    it was written; None: a new learner."""

    handle: int | None = None
    changes: list[Callable[[Any], object]] = field(default_factory=list)

    def directory(self) -> Path | None:
        """Where the checkpoint is now; None where it is gone."""
        assert self.handle is not None
        path = Path(os.readlink(f"/proc/self/fd/{self.handle}"))
        return path if path.is_dir() else None

    def forget(self) -> None:
        if self.handle is not None:
            with contextlib.suppress(OSError):
                os.close(self.handle)
            self.handle = None


class Recovering(Generic[R]):
    """What all that recover have in common."""

    def __init__(self, make: Callable[[], R], restarts: int, *, role: str = "learner") -> None:
        """``make``: a new one as it was at the beginning; ``restarts``: how often, in all; ``role``: for people."""
        self._make = make
        self._role = role
        self._left = restarts
        self.restarted = 0
        self._bases = [_Base()]
        self._held = make()
        self._closed = False

    @property
    def present(self) -> R:
        """The one that lives now."""
        return self._held

    def save(self, directory: Path) -> None:
        self._alive(lambda role: role.save(directory))
        self._begin_at(directory)

    def load(self, directory: Path) -> None:
        self._alive(lambda role: role.load(directory))
        self._begin_at(directory)
        self._drop(1)  # what was before is no past of this

    def close(self) -> None:
        self._closed = True
        self._held.close()
        self._drop(0)

    # --- life and death ----------------------------------------------------------------------------------------------

    def _change(self, step: Callable[[R], T]) -> T:
        value = self._alive(step)
        self._bases[-1].changes.append(step)
        return value

    def _alive(self, call: Callable[[R], T]) -> T:
        """Call it, on a replacement if need be: what a dead one had done of it died with it."""
        while True:
            try:
                return call(self._held)
            except LearnerDead as death:
                self._replace(death)

    def _replace(self, death: LearnerDead) -> None:
        while True:
            if self._closed or self._left <= 0:
                raise LearnerDead(
                    f"{death} It was replaced {self.restarted} times; learner.restarts allows no more. What ended it "
                    "is in the run's train.log; a learner that runs out of memory needs a smaller "
                    "learner.micro_batch_tokens or learner.activation_checkpointing=true."
                ) from death
            self._left -= 1
            self.restarted += 1
            log.warning("the %s died and is replaced: %s", self._role, death)
            self._held.close()
            try:
                self._held = self._make()
                self._catch_up()
            except LearnerDead as another:
                death = another
                continue
            log.warning("the %s was replaced and is where it was", self._role)
            return

    def _catch_up(self) -> None:
        """From the newest checkpoint there is, by the steps since."""
        steps: list[Callable[[R], object]] = []
        for base in reversed(self._bases):
            steps = [*base.changes, *steps]
            directory = base.directory() if base.handle is not None else None
            if base.handle is not None and directory is None:
                continue  # it was never finished, or has been removed
            if directory is not None:
                self._held.load(directory)
            for step in steps:
                step(self._held)
            return
        raise CheckpointError(
            f"The {self._role} died, and its last checkpoint is gone: there is nothing to go on from."
        )

    def _begin_at(self, directory: Path) -> None:
        self._bases.append(_Base(os.open(directory, os.O_RDONLY | os.O_DIRECTORY)))
        self._drop(_KEPT)

    def _drop(self, keep: int) -> None:
        cut = len(self._bases) - keep
        for base in self._bases[:cut]:
            base.forget()
        del self._bases[:cut]


class RecoveringLearner(Recovering[Learner]):
    """A :class:`~roll_core.learners.base.Learner`."""

    @property
    def version(self) -> int:
        return self._held.version

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        return self._change(lambda learner: learner.train_step(batch, progress=progress))

    def skip_step(self) -> dict[str, float]:
        return self._change(lambda learner: learner.skip_step())

    def score(self, batch: TrainBatch) -> Scores:
        return self._alive(lambda learner: learner.score(batch))

    def weights(self) -> Weights:
        return self._alive(lambda learner: learner.weights())


class RecoveringCritics(Recovering[Critics]):
    """A :class:`~roll_core.learners.base.Critics`."""

    def values(self, batch: TrainBatch) -> Tensor:
        return self._alive(lambda critics: critics.values(batch))

    def estimate(self, batch: TrainBatch) -> Estimate:
        return self._alive(lambda critics: critics.estimate(batch))

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        as_it_is = copy.copy(batch)  # advantages and others are filled in later, in the same object
        return self._change(lambda critics: critics.train_step(as_it_is))


class RecoveringReference(Recovering[Reference]):
    """A :class:`~roll_core.learners.base.Reference`."""

    def logprobs(self, batch: TrainBatch) -> Tensor:
        return self._alive(lambda reference: reference.logprobs(batch))


class Reader(ActorAttn, Role, Protocol):
    """Reads attention somewhere else."""


class RecoveringReader(Recovering[Reader]):
    """A :class:`~roll_core.learners.base.ActorAttn`. It is the present policy and nothing else: the weights it was
    given last are all its past."""

    @property
    def last(self) -> Reading | None:
        return self._held.last

    def load_weights(self, weights: Weights) -> None:
        self._change(lambda reader: reader.load_weights(weights))
        del self._bases[-1].changes[:-1]

    def rhythm(self, batch: TrainBatch) -> Rhythm:
        return self._alive(lambda reader: reader.rhythm(batch))
