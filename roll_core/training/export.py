"""The policy of a run as a Hugging Face directory that ``transformers`` and vLLM load.

Invariants: what is written is what the engines sampled with at that step, adapters merged; a directory is complete or
not there under its name.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from roll_core.config import Recipe
from roll_core.errors import CheckpointError
from roll_core.models import ModelConfig, Tokenizer
from roll_core.models.checkpoint import SHARD_BYTES, save_weights
from roll_core.training import assembly
from roll_core.training.checkpoint import CheckpointStore, load_state
from roll_core.training.run import RunDirectory
from roll_core.types import Weights

PROVENANCE = "rock_export.json"

# What a checkpoint has beside its weights, as it was there: ours knows the ids and not every setting around them.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Exported:
    """``parameters``: how many numbers the model has; a head tied to the embedding counts once."""

    directory: Path
    run_id: str
    step: int
    parameters: int
    files: tuple[str, ...]


def export(
    run: RunDirectory,
    out: Path,
    *,
    step: int | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the policy of a checkpoint (the newest whole one, or that of ``step``) to ``out``.

    Raises CheckpointError: there is no such checkpoint, or ``out`` is there and ``overwrite`` is not set.
    """
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} is there already; name another directory, or give --overwrite.")
    identity = run.identity()
    policy = load_policy(run, step)
    recipe, tokenizer = policy.recipe, policy.tokenizer

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _write_beside(recipe, tokenizer, partial)
    save_weights(policy.config, policy.weights.tensors, partial, tokenizer, dtype=dtype, shard_bytes=shard_bytes)
    about = {"run_id": identity.run_id, "recipe": recipe.name, "step": policy.step}
    (partial / PROVENANCE).write_text(json.dumps(about) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    count = sum(t.numel() for t in policy.weights.tensors.values())
    return Exported(out, identity.run_id, policy.step, count, tuple(sorted(p.name for p in out.iterdir())))


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy of a checkpoint, and what is needed to sample from it."""

    recipe: Recipe
    tokenizer: Tokenizer
    config: ModelConfig
    weights: Weights
    step: int


def load_policy(run: RunDirectory, step: int | None = None) -> Policy:
    """The policy of the newest whole checkpoint, or of that of ``step``. Raises CheckpointError when there is none."""
    alone = ["learner.processes=1", "learner.tensor_parallel=1", "learner.pipeline_parallel=1"]
    recipe = run.recipe(["learner.device=cpu", "learner.sequence_parallel=false", *alone])
    path = _checkpoint(run, recipe, step)
    tokenizer = Tokenizer.load(run.tokenizer)
    model = assembly.make_model(recipe, tokenizer)
    learner = assembly.make_learner(recipe, model)
    learner.load(path / "learner")
    weights = learner.weights()
    learner.close()
    return Policy(recipe, tokenizer, model.config, weights, load_state(path).step)


def _checkpoint(run: RunDirectory, recipe: Recipe, step: int | None) -> Path:
    store: CheckpointStore = run.checkpoints(recipe.checkpoint.keep)
    whole = store.whole()
    found = {load_state(path).step: path for path in whole}
    if not found:
        raise CheckpointError(f"{run.path} has no whole checkpoint: the run has not come to its first.")
    if step is None:
        return found[max(found)]
    if step not in found:
        raise CheckpointError(f"{run.path} has no whole checkpoint of step {step}; it has {sorted(found)}.")
    return found[step]


def _write_beside(recipe: Recipe, tokenizer: Tokenizer, directory: Path) -> None:
    """The files around the weights, before the tokenizer's own, which keeps those that are there."""
    directory.mkdir(parents=True)
    if recipe.model.source == "checkpoint":
        folder = assembly.checkpoint_folder(recipe)
        for name in _BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, directory / name)
    if not (directory / "generation_config.json").exists():
        stops = list(assembly.make_prompter(recipe, tokenizer).stop_token_ids)
        if stops:  # or whoever generates from it would not know where an answer ends
            (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}) + "\n")
