"""What a recipe may say of a learner on Megatron-Core."""

from __future__ import annotations

import pytest

from roll_core.config import load_recipe
from roll_core.errors import RecipeError

MEGATRON = "learner.kind=megatron"
ADAMW = "learner.optimizer=adamw"


def test_the_replicas_are_what_is_left_of_the_processes() -> None:
    recipe = load_recipe(
        "countdown-tiny",
        [MEGATRON, ADAMW, "learner.processes=8", "learner.tensor_parallel=2", "learner.pipeline_parallel=2"],
    )
    assert recipe.learner.processes // (recipe.learner.tensor_parallel * recipe.learner.pipeline_parallel) == 2


def test_ranks_may_share_positions_and_passes_may_be_in_bfloat16() -> None:
    layout = [MEGATRON, ADAMW, "learner.processes=2", "learner.tensor_parallel=2"]
    recipe = load_recipe("countdown-tiny", [*layout, "learner.sequence_parallel=true", "learner.dtype=bfloat16"])
    assert recipe.learner.sequence_parallel
    assert recipe.learner.packing


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.tensor_parallel=2"], "are for learner.kind 'megatron', found 'torch'"),
        (["learner.distributed_optimizer=true"], "are for learner.kind 'megatron'"),
        ([MEGATRON, "learner.processes=3", "learner.tensor_parallel=2"], "no multiple of tensor_parallel"),
        ([MEGATRON, "learner.optimizer=muon"], "is without optimizer=muon"),
        (["learner.sequence_parallel=true"], "are for learner.kind 'megatron'"),
        ([MEGATRON, ADAMW, "learner.sequence_parallel=true"], "for the ranks of learner.tensor_parallel: that is 1"),
        ([MEGATRON, ADAMW, "learner.lora_rank=4"], "is without lora_rank=4"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("countdown-tiny", overrides)
