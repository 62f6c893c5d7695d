"""The learner on Megatron-Core, as one :class:`~roll_core.learners.base.Learner`.

The processes are :mod:`roll_core.learners.megatron.rank`; here is who starts them, calls them, and hands weights on.
Megatron, and the layer that lets it run without CUDA, are in those processes alone.

Invariants: the result is that of the plain torch learner on the same batches, to rounding, for every layout.
"""

from __future__ import annotations

import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from roll_core.errors import CheckpointError, LearnerDead, RecipeError
from roll_core.learners.base import Scores
from roll_core.learners.config import LearnerConfig
from roll_core.learners.fsdp import memory_folder
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.processes import Rank, RankGroup
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights


def missing_package() -> str:
    """What to do where Megatron-Core is not installed; empty where it is."""
    try:
        found = importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else "megatron-core is not installed: pip install 'rock-roll[megatron]'"


def make_rank(spec: Spec, file: Path, rank: Rank) -> Any:
    """In a process of its own, for as long as that lasts."""
    from roll_core.learners.megatron.compat import cuda_or_cpu_for_good

    device = cuda_or_cpu_for_good(rank.device)
    from roll_core.learners.megatron.rank import RankLearner

    return RankLearner(spec, load_file(file), device)


class MegatronLearner:
    """``model`` is where it begins; it is not changed nor kept."""

    def __init__(
        self,
        model: CausalLM,
        config: LearnerConfig | None = None,
        *,
        layout: Layout | None = None,
        distributed_optimizer: bool = False,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        """Blocks until every process has its share. ``threads`` of torch in each; 0: torch's own choice.

        Raises RecipeError when Megatron-Core is missing or the model cannot be cut that way, LearnerDead with what the
        first process to fail said.
        """
        layout, config = layout or Layout(), config or LearnerConfig()
        if problem := missing_package():
            raise RecipeError(f"learner.kind is 'megatron', but {problem}")
        layout.check(model.config)
        check_config(config)
        self.version = 0
        spec = Spec(model.config, config, layout, distributed_optimizer)
        with tempfile.TemporaryDirectory(prefix="rock-policy-", dir=memory_folder()) as folder:
            file = Path(folder) / "policy.safetensors"
            save_file({n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}, file)
            self._ranks = RankGroup(partial(make_rank, spec, file), layout.world, device=device, threads=threads)

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


def check_config(config: LearnerConfig) -> None:
    """Raises RecipeError for what this learner has not."""
    if config.optimizer != "adamw":
        raise RecipeError(f"learner.optimizer={config.optimizer!r}: learner.kind 'megatron' has 'adamw' only.")
    if config.dtype != "float32":
        raise RecipeError(f"learner.dtype={config.dtype!r}: learner.kind 'megatron' has 'float32' only.")
