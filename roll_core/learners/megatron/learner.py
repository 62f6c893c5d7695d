"""The learner on Megatron-Core, as one :class:`~roll_core.learners.base.Learner`.

The processes are :mod:`roll_core.learners.megatron.rank`; who starts and calls them is
:mod:`roll_core.learners.shared`. Megatron, and the layer that lets it run without CUDA, are in those processes alone.

Invariants: the result is that of the plain torch learner on the same batches, to rounding, for every layout.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from roll_core.errors import RecipeError
from roll_core.learners.config import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.spec import Spec
from roll_core.learners.processes import Rank
from roll_core.learners.shared import SharedLearner
from roll_core.models.qwen import CausalLM


def missing_package() -> str:
    """What to do where Megatron-Core is not installed; empty where it is."""
    try:
        found = importlib.util.find_spec("megatron.core") is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else "megatron-core is not installed: pip install 'rock-roll[megatron]'"


def make_rank(spec: Spec, file: Path, rank: Rank) -> Any:
    """In a process of its own, for as long as that lasts."""
    # Megatron imports W&B where it is installed, which makes directories that a killed process leaves behind.
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
    from roll_core.learners.megatron.compat import cuda_or_cpu_for_good

    device = cuda_or_cpu_for_good(rank.device)
    from roll_core.learners.megatron.rank import RankLearner

    return RankLearner(spec, load_file(file), device)


class MegatronLearner(SharedLearner):
    """``model`` is where it begins; it is not changed nor kept."""

    def __init__(
        self,
        model: CausalLM,
        config: LearnerConfig | None = None,
        *,
        layout: Layout | None = None,
        distributed_optimizer: bool = False,
        packing: bool = True,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        """Blocks until every process has its share. ``packing``: rows of a micro-batch lie end to end, without padding.
        ``threads`` of torch in each; 0: torch's own choice.

        Raises RecipeError when Megatron-Core is missing or the model cannot be cut that way, LearnerDead with what the
        first process to fail said.
        """
        layout, config = layout or Layout(), config or LearnerConfig()
        if problem := missing_package():
            raise RecipeError(f"learner.kind is 'megatron', but {problem}")
        layout.check(model.config)
        check_config(config)
        spec = Spec(model.config, config, layout, distributed_optimizer, packing)
        super().__init__(partial(make_rank, spec), model, layout.world, device=device, threads=threads)


def check_config(config: LearnerConfig) -> None:
    """Raises RecipeError for what this learner has not."""
    if config.optimizer != "adamw":
        raise RecipeError(f"learner.optimizer={config.optimizer!r}: learner.kind 'megatron' has 'adamw' only.")
