"""Hugging Face directories: config.json and safetensors, one file or sharded, to and from :class:`CausalLM`.

Invariants: nothing is guessed: an architecture or a setting that the network does not implement is refused by name;
after loading every parameter came from the files. Files are written beside and renamed, so a reader never sees half.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from roll_core.errors import CheckpointError
from roll_core.models.qwen import CausalLM, ModelConfig

if TYPE_CHECKING:
    from roll_core.models.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; expected a Hugging Face model directory.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object.")
    return content


def load_hf_config(directory: Path) -> ModelConfig:
    """Read ``config.json``; CheckpointError for anything but a dense Qwen3 or Qwen2 with plain rotary embedding."""
    path = Path(directory) / "config.json"
    raw = _read_json(path)
    kind = raw.get("model_type")
    if kind not in ("qwen3", "qwen2"):
        raise CheckpointError(f"{path} says model_type={kind!r}; this network implements 'qwen3' and 'qwen2'.")
    rope: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "rope_type": rope_type != "default",
        "use_sliding_window": bool(raw.get("use_sliding_window", False)),
        "attention_bias": kind == "qwen3" and bool(raw.get("attention_bias", False)),
    }
    if any(refused.values()):
        names = ", ".join(n for n, bad in refused.items() if bad)
        raise CheckpointError(f"{path} sets {names} to something that this network does not implement.")
    heads = int(raw["num_attention_heads"])
    return ModelConfig(
        vocab=int(raw["vocab_size"]),
        hidden=int(raw["hidden_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // heads),
        intermediate=int(raw["intermediate_size"]),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        eps=float(raw.get("rms_norm_eps", 1e-6)),
        tie=bool(raw.get("tie_word_embeddings", False)),
        max_context=int(raw.get("max_position_embeddings", 32_768)),
        qk_norm=kind == "qwen3",
        qkv_bias=kind == "qwen2",
    )


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    index = directory / _INDEX
    single = directory / "model.safetensors"
    if index.exists():
        files = sorted(set(_read_json(index)["weight_map"].values()))
    elif single.exists():
        files = [single.name]
    else:
        raise CheckpointError(f"{directory} has neither model.safetensors nor {_INDEX}.")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors.update(load_file(directory / name))
    return tensors


def load_tensors(model: CausalLM, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into ``model``; raises CheckpointError when one is missing, unknown or misshapen."""
    parameters = dict(model.named_parameters())
    given = {k: v for k, v in tensors.items() if not (k == "lm_head.weight" and model.config.tie)}
    if given.keys() != parameters.keys():
        missing, unknown = sorted(parameters.keys() - given.keys()), sorted(given.keys() - parameters.keys())
        raise CheckpointError(f"weights do not fit the model: missing {missing[:5]}, unknown {unknown[:5]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if given[name].shape != parameter.shape:
                raise CheckpointError(f"{name} is {tuple(given[name].shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(given[name])


def load_hf(directory: Path | str, *, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Load a Qwen3 or Qwen2 checkpoint. Raises CheckpointError when it is missing, torn or of another kind."""
    directory = Path(directory)
    model = CausalLM(load_hf_config(directory)).to(dtype)
    load_tensors(model, _read_tensors(directory))
    return model


def _hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    if config.qk_norm == config.qkv_bias:
        raise CheckpointError("only qk_norm without qkv_bias (Qwen3) or the reverse (Qwen2) has a Hugging Face name.")
    kind, cls = ("qwen3", "Qwen3ForCausalLM") if config.qk_norm else ("qwen2", "Qwen2ForCausalLM")
    return {
        "architectures": [cls],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tie,
        "max_position_embeddings": config.max_context,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def save_hf(model: CausalLM, directory: Path | str, tokenizer: Tokenizer | None = None) -> None:
    """Write a directory that ``transformers`` and vLLM load: config.json, model.safetensors, the tokenizer's files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.named_parameters()}
    dtype = next(iter(tensors.values())).dtype
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(directory / "model.safetensors")
    (directory / _INDEX).unlink(missing_ok=True)
    (directory / "config.json").write_text(json.dumps(_hf_config(model.config, dtype), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(directory)
