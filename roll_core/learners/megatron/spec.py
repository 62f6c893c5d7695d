"""What every process of a Megatron learner is told when it starts. Needs no Megatron."""

from __future__ import annotations

from dataclasses import dataclass

from roll_core.learners.config import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.models.qwen import ModelConfig


@dataclass(frozen=True, slots=True)
class Spec:
    model: ModelConfig
    learner: LearnerConfig
    layout: Layout
    distributed_optimizer: bool = False
    """Each data-parallel replica keeps a share of the optimizer's state, not a copy."""
    packing: bool = True
    """Rows of a micro-batch lie end to end, without padding."""
