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


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.tensor_parallel=2"], "are for learner.kind 'megatron', found 'torch'"),
        (["learner.distributed_optimizer=true"], "are for learner.kind 'megatron'"),
        ([MEGATRON, "learner.processes=3", "learner.tensor_parallel=2"], "no multiple of tensor_parallel"),
        ([MEGATRON, "learner.optimizer=muon"], "is without optimizer=muon"),
        ([MEGATRON, ADAMW, "learner.dtype=bfloat16"], "is without dtype=bfloat16"),
        ([MEGATRON, ADAMW, "learner.lora_rank=4"], "is without lora_rank=4"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("countdown-tiny", overrides)
