"""The policy's shape before there is a policy."""

from __future__ import annotations

from pathlib import Path

from roll_core.config import Recipe
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
    return ModelConfig(
        vocab=recipe.tokenizer.vocab_size,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate=model.intermediate,
        rope_theta=model.rope_theta,
        max_context=model.max_context,
    )
