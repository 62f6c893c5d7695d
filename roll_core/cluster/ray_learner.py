"""A learner on another machine, as one :class:`~roll_core.learners.base.Learner`. Calls block: the run calls it from
the learner's thread.

Invariants: whatever makes the actor unreachable is LearnerDead, so that
:class:`~roll_core.learners.recovering.RecoveringLearner` replaces it; an error that the learner raised is raised here;
checkpoints lie where the run is, not where the learner is, which may be gone: their files travel.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from roll_core.cluster.placement import Seat, at_seat
from roll_core.cluster.ray_cluster import START_S, RayCluster
from roll_core.config import Recipe
from roll_core.errors import LearnerDead, RollError
from roll_core.learners.base import Learner, Scores
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch, Weights


class LearnerActor:
    """Runs in Ray's process on the machine; with several processes, those are its children."""

    def __init__(self, recipe: Recipe, config: ModelConfig, parameters: dict[str, Tensor]) -> None:
        from roll_core.models.checkpoint import load_tensors
        from roll_core.training.assembly import make_bare_learner

        model = CausalLM(config, seed=None)
        load_tensors(model, parameters)
        self._learner: Learner = make_bare_learner(recipe, model)

    def started(self) -> int:
        return self._learner.version

    def train_step(self, batch: TrainBatch, progress: float) -> tuple[int, dict[str, float]]:
        metrics = self._learner.train_step(batch, progress=progress)
        return self._learner.version, metrics

    def skip_step(self) -> tuple[int, dict[str, float]]:
        metrics = self._learner.skip_step()
        return self._learner.version, metrics

    def score(self, batch: TrainBatch) -> Scores:
        return self._learner.score(batch)

    def weights(self) -> Weights:
        return self._learner.weights()

    def save(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="rock-learner-") as folder:
            self._learner.save(Path(folder))
            return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

    def load(self, files: dict[str, bytes]) -> int:
        with tempfile.TemporaryDirectory(prefix="rock-learner-") as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._learner.load(Path(folder))
        return self._learner.version


class RayLearner:
    """A :class:`~roll_core.learners.base.Learner`."""

    def __init__(
        self, cluster: RayCluster, seat: Seat, recipe: Recipe, config: ModelConfig, parameters: dict[str, Tensor]
    ) -> None:
        """``parameters``: of the policy it begins from. Blocks until it is there. Raises LearnerDead."""
        self._cluster = cluster
        self._actor = cluster.actor(LearnerActor, seat, at_seat(recipe, seat), config, parameters)
        self.version: int = self._call("started", timeout_s=START_S)

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        self.version, metrics = self._call("train_step", batch, progress)
        return dict(metrics)

    def skip_step(self) -> dict[str, float]:
        self.version, metrics = self._call("skip_step")
        return dict(metrics)

    def score(self, batch: TrainBatch) -> Scores:
        scores: Scores = self._call("score", batch)
        return scores

    def weights(self) -> Weights:
        weights: Weights = self._call("weights")
        return weights

    def save(self, directory: Path) -> None:
        for name, content in self._call("save").items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def load(self, directory: Path) -> None:
        files = {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}
        self.version = self._call("load", files)

    def close(self) -> None:
        self._cluster.end(self._actor)

    def _call(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        errors = self._cluster.ray.exceptions
        try:
            return self._cluster.ray.get(getattr(self._actor, method).remote(*args), timeout=timeout_s)
        except errors.RayTaskError as error:
            if isinstance(error.cause, RollError | ValueError | IndexError | RuntimeError):
                raise error.cause from error
            raise
        except errors.RayError as error:
            self._cluster.end(self._actor)
            raise LearnerDead(f"the learner's process or its machine was lost in {method!r}: {error}") from error
