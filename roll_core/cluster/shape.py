"""The shapes of networks before they are there."""

from __future__ import annotations

from pathlib import Path

from roll_core.config import Recipe
from roll_core.config.algorithm import Critic
from roll_core.config.models import Model
from roll_core.models import ModelConfig
from roll_core.models.checkpoint import load_hf_config


def expected_shape(recipe: Recipe) -> ModelConfig | None:
    """From the recipe, or from the checkpoint's directory; None where that is still to be fetched.

    A tokenizer that is still to be trained counts with its upper bound. Raises CheckpointError when the directory holds
    no model that can be read.
    """
    model = recipe.model
    if model.source == "checkpoint":
        folder = Path(model.path).expanduser()
        return load_hf_config(folder) if folder.is_dir() else None
    return new_shape(recipe, model, recipe.tokenizer.vocab_size)


def new_shape(recipe: Recipe, sizes: Model | Critic, vocab: int) -> ModelConfig:
    """Of a network that begins with random weights."""
    return ModelConfig(
        vocab=vocab,
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate=sizes.intermediate,
        rope_theta=recipe.model.rope_theta,
        max_context=recipe.model.max_context,
    )
