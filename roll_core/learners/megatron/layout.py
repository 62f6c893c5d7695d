"""How a model is cut over processes: tensor × pipeline × data parallel. Pure; needs no Megatron.

Invariants: a layout that would not come out even is refused before anything is started.
"""

from __future__ import annotations

from dataclasses import dataclass

from roll_core.errors import RecipeError
from roll_core.models.qwen import ModelConfig

_VOCABULARY_MULTIPLE = 16
"""Rows of the embedding in one rank are a multiple of this: odd widths make slow matrix products on GPUs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``tensor`` ranks share every layer, ``pipeline`` stages follow each other, ``data`` replicas share the rows.
    ``sequence``: the tensor ranks share out positions, too, where a layer works on each by itself."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence: bool = False

    def __post_init__(self) -> None:
        if min(self.tensor, self.pipeline, self.data) < 1:
            raise RecipeError(f"{self} has a size below 1: every direction has at least one process.")
        if self.sequence and self.tensor == 1:
            raise RecipeError(
                "learner.sequence_parallel shares positions out over the ranks of learner.tensor_parallel=1; "
                "it needs at least 2."
            )

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    def check(self, config: ModelConfig) -> None:
        """Raises RecipeError, with what would fit, when ``config`` cannot be cut this way."""
        for name, size in (
            ("heads", config.heads),
            ("kv_heads", config.kv_heads),
            ("intermediate", config.intermediate),
        ):
            if size % self.tensor:
                raise RecipeError(
                    f"learner.tensor_parallel={self.tensor} does not divide the model's {name}={size}; "
                    f"take one of {_divisors(config, size)}."
                )
        if config.layers % self.pipeline:
            fits = [n for n in range(1, config.layers + 1) if config.layers % n == 0]
            raise RecipeError(
                f"learner.pipeline_parallel={self.pipeline} does not divide the model's layers={config.layers}; "
                f"take one of {fits}."
            )

    def padded_vocab(self, vocab: int) -> int:
        """Rows of the embedding, those that no token has included."""
        multiple = self.tensor * _VOCABULARY_MULTIPLE
        return -(-vocab // multiple) * multiple


def _divisors(config: ModelConfig, size: int) -> list[int]:
    both = (config.heads, config.kv_heads, config.intermediate)
    return [n for n in range(1, size + 1) if all(x % n == 0 for x in both)]
