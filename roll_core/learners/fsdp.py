"""The learner that shares a model out over several processes (FSDP2), as one :class:`~roll_core.learners.base.Learner`.

The processes are :mod:`roll_core.learners.fsdp_rank`; here is who starts them, calls them, and hands weights on.

Invariants: the result is that of the plain torch learner on the same batches, to rounding; weights go from the first
rank to this process through a file of shared memory, written once.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file

from roll_core.errors import CheckpointError, LearnerDead
from roll_core.learners.base import Scores
from roll_core.learners.config import LearnerConfig
from roll_core.learners.fsdp_rank import Adapters, Begin, make_rank
from roll_core.learners.processes import RankGroup
from roll_core.models.lora import LoraLinear
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights

_SHARED_MEMORY = Path("/dev/shm")


def memory_folder() -> str | None:
    """Where files are memory; None, the temporary folder, where there is no such place."""
    return str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None


class FsdpLearner:
    """A :class:`~roll_core.learners.base.Learner`. ``model`` is where it begins; it is not changed nor kept."""

    def __init__(
        self,
        model: CausalLM,
        config: LearnerConfig | None = None,
        *,
        processes: int = 1,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        """Blocks until every process has its shards. ``threads`` of torch in each; 0: torch's own choice.

        Raises LearnerDead with what the first process to fail said.
        """
        self.version = 0
        with tempfile.TemporaryDirectory(prefix="rock-policy-", dir=memory_folder()) as folder:
            file = Path(folder) / "policy.safetensors"
            parameters = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}
            save_file(parameters, file)
            begin = Begin(model.config, file, config or LearnerConfig(), _adapters(model))
            self._ranks = RankGroup(partial(make_rank, begin), processes, device=device, threads=threads)

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


def _adapters(model: CausalLM) -> Adapters | None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            rank = module.lora_a.shape[0]
            return Adapters(rank, module.scale * rank)
    return None
