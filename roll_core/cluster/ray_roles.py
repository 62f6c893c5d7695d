"""The roles of a learner step on other machines, each as the protocol that it implements. Calls block: the run calls
them from the learner's thread.

Invariants: whatever makes an actor unreachable is LearnerDead, so that
:class:`~roll_core.learners.recovering.Recovering` replaces it; an error that the role raised is raised here;
checkpoints lie where the run is, not where the role is, which may be gone: their files travel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from roll_core.cluster.placement import Seat
from roll_core.cluster.ray_cluster import START_S, RayCluster
from roll_core.errors import LearnerDead, RollError
from roll_core.learners.actor_attn import AttentionReader, Reading
from roll_core.learners.base import Estimate, Rhythm, Scores
from roll_core.types import TrainBatch, Weights

Make = Callable[[], Any]
"""Makes the role; is called in Ray's process, so it has to be picklable."""


class RoleActor:
    """Runs in Ray's process on the machine; a learner of several processes has them as its children."""

    def __init__(self, make: Make) -> None:
        self._role = make()

    def get(self, name: str) -> Any:
        return getattr(self._role, name)

    def call(self, method: str, *args: Any, **named: Any) -> Any:
        return getattr(self._role, method)(*args, **named)

    def save(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="rock-role-") as folder:
            self._role.save(Path(folder))
            return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

    def load(self, files: dict[str, bytes]) -> None:
        with tempfile.TemporaryDirectory(prefix="rock-role-") as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._role.load(Path(folder))

    def read(self, batch: TrainBatch) -> dict[str, Any]:
        """What an :class:`AttentionReader` finds in ``batch``, which need not travel back."""
        reader: AttentionReader = self._role
        reader.rhythm(batch)
        assert reader.last is not None
        names = ("rows", "attended", "shown", "entropy_ST", "layers")
        return {name: getattr(reader.last, name) for name in names}


class RayRole:
    """A :class:`~roll_core.learners.base.Role`."""

    def __init__(self, cluster: RayCluster, seat: Seat, make: Make) -> None:
        """Blocks until it is there. Raises LearnerDead."""
        self._cluster, self._name = cluster, seat.role
        self._actor = cluster.actor(RoleActor, seat, make)
        self._ask("get", "__class__", timeout_s=START_S)

    def save(self, directory: Path) -> None:
        for name, content in self._ask("save").items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def load(self, directory: Path) -> None:
        files = {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}
        self._ask("load", files)

    def close(self) -> None:
        self._cluster.end(self._actor)

    def _call(self, method: str, *args: Any, **named: Any) -> Any:
        return self._ask("call", method, *args, **named)

    def _ask(self, what: str, *args: Any, timeout_s: float | None = None, **named: Any) -> Any:
        ray = self._cluster.ray
        try:
            return ray.get(getattr(self._actor, what).remote(*args, **named), timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RollError | ValueError | IndexError | RuntimeError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            self._cluster.end(self._actor)
            doing = args[0] if what == "call" else what
            raise LearnerDead(
                f"the process of the role {self._name!r}, or its machine, was lost in {doing!r}: {error}"
            ) from error


class RayLearner(RayRole):
    """A :class:`~roll_core.learners.base.Learner`."""

    def __init__(self, cluster: RayCluster, seat: Seat, make: Make) -> None:
        super().__init__(cluster, seat, make)
        self.version: int = self._ask("get", "version")

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        return self._stepped(self._call("train_step", batch, progress=progress))

    def skip_step(self) -> dict[str, float]:
        return self._stepped(self._call("skip_step"))

    def _stepped(self, metrics: dict[str, float]) -> dict[str, float]:
        self.version += 1
        return dict(metrics)

    def score(self, batch: TrainBatch) -> Scores:
        scores: Scores = self._call("score", batch)
        return scores

    def weights(self) -> Weights:
        weights: Weights = self._call("weights")
        return weights

    def load(self, directory: Path) -> None:
        super().load(directory)
        self.version = self._ask("get", "version")


class RayCritics(RayRole):
    """A :class:`~roll_core.learners.base.Critics`."""

    def values(self, batch: TrainBatch) -> Tensor:
        return self.estimate(batch).values_MBT

    def estimate(self, batch: TrainBatch) -> Estimate:
        estimate: Estimate = self._call("estimate", batch)
        return estimate

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        return dict(self._call("train_step", batch))


class RayReference(RayRole):
    """A :class:`~roll_core.learners.base.Reference`."""

    def logprobs(self, batch: TrainBatch) -> Tensor:
        logprobs_BT: Tensor = self._call("logprobs", batch)
        return logprobs_BT


class RayReader(RayRole):
    """A :class:`~roll_core.learners.base.ActorAttn`."""

    last: Reading | None = None

    def load_weights(self, weights: Weights) -> None:
        self._call("load_weights", weights)

    def rhythm(self, batch: TrainBatch) -> Rhythm:
        self.last = Reading(batch, **self._ask("read", batch))
        return self.last.attended.rhythm
