"""The learner that shares a model out over several processes (FSDP2), as one :class:`~roll_core.learners.base.Learner`.

The processes are :mod:`roll_core.learners.fsdp_rank`; who starts and calls them is :mod:`roll_core.learners.shared`.

Invariants: the result is that of the plain torch learner on the same batches, to rounding.
"""

from __future__ import annotations

from functools import partial

from roll_core.learners.config import LearnerConfig
from roll_core.learners.fsdp_rank import Adapters, Begin, make_rank
from roll_core.learners.shared import SharedLearner
from roll_core.models.lora import LoraLinear
from roll_core.models.qwen import CausalLM


class FsdpLearner(SharedLearner):
    """``model`` is where it begins; it is not changed nor kept."""

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
        begin = Begin(model.config, config or LearnerConfig(), _adapters(model))
        super().__init__(partial(make_rank, begin), model, processes, device=device, threads=threads)


def _adapters(model: CausalLM) -> Adapters | None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            rank = module.lora_a.shape[0]
            return Adapters(rank, module.scale * rank)
    return None
