"""A learner in processes of its own that share a model out, whatever shares it: who starts them, calls them, and hands
weights on.

Invariants: every rank gets the same calls; the policy goes to the processes, and weights come from the first of them,
through a file of shared memory, written once; what a rank refuses is told as the plain learner would tell it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from roll_core.errors import CheckpointError, LearnerDead
from roll_core.learners.base import Scores
from roll_core.learners.processes import Rank, RankGroup
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights

_SHARED_MEMORY = Path("/dev/shm")

MakeRank = Callable[[Path, Rank], Any]
"""What a rank holds, from a safetensors file of the policy's parameters; has to be picklable."""


def memory_folder() -> str | None:
    """Where files are memory; None, the temporary folder, where there is no such place."""
    return str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None


class SharedLearner:
    """A :class:`~roll_core.learners.base.Learner`; what its processes hold is a
    :class:`~roll_core.learners.shared_rank.SharedRank` each."""

    def __init__(self, make: MakeRank, model: CausalLM, processes: int, *, device: str, threads: int) -> None:
        """Blocks until every process has its share of ``model``. Raises LearnerDead with what the first process to
        fail said."""
        self.version = 0
        with tempfile.TemporaryDirectory(prefix="rock-policy-", dir=memory_folder()) as folder:
            file = Path(folder) / "policy.safetensors"
            save_file({n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}, file)
            self._ranks = RankGroup(partial(make, file), processes, device=device, threads=threads)

    @property
    def pids(self) -> list[int]:
        return self._ranks.pids

    def train_step(self, batch: TrainBatch, *, progress: float = 0.0) -> dict[str, float]:
        metrics: dict[str, float] = self._ranks.call("train_step", batch, progress)[0]
        self.version += 1
        return metrics

    def skip_step(self) -> dict[str, float]:
        self._ranks.call("skip_step")
        self.version += 1
        return {"learner/skipped_steps": 1.0}

    def score(self, batch: TrainBatch) -> Scores:
        scores: Scores = self._ranks.call("score", batch)[0]
        return scores

    def weights(self) -> Weights:
        with tempfile.TemporaryDirectory(prefix="rock-weights-", dir=memory_folder()) as folder:
            file = Path(folder) / "weights.safetensors"
            self._ranks.call("write_weights", file)
            # A copy: the file goes away, and what is mapped of it would stay in shared memory as long as any tensor.
            return Weights(self.version, {name: t.clone() for name, t in load_file(file).items()})

    def save(self, directory: Path) -> None:
        self._ranks.call("save", Path(directory))

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when it is missing, torn, or of another model; the processes are over then."""
        try:
            self.version = self._ranks.call("load", Path(directory))[0]
        except LearnerDead as error:
            if "CheckpointError" in str(error):
                raise CheckpointError(str(error)) from error
            raise

    def close(self) -> None:
        self._ranks.close()
