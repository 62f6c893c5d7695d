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
from roll_core.models.lora import plain_parameters
from roll_core.models.qwen import CausalLM, ModelConfig, RopeScaling

if TYPE_CHECKING:
    from roll_core.models.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
SHARD_BYTES = 5 * 10**9
"""Size from which a checkpoint is cut, as Hugging Face's own tools do."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; expected a Hugging Face model directory.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object.")
    return content


def load_hf_config(directory: Path) -> ModelConfig:
    """Read ``config.json``; CheckpointError for anything but a dense Qwen3, Qwen2 or Llama whose rotary embedding is
    plain or Llama 3's."""
    path = Path(directory) / "config.json"
    raw = _read_json(path)
    kind = raw.get("model_type")
    if kind not in _CLASSES:
        known = ", ".join(repr(name) for name in _CLASSES)
        raise CheckpointError(f"{path} says model_type={kind!r}; this network implements {known}.")
    _refuse_unknown(path, kind, raw)
    rope = _rope(raw)
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
        rope_scaling=_rope_scaling(path, rope),
    )


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return rope


def _refuse_unknown(path: Path, kind: str, raw: dict[str, Any]) -> None:
    rope = _rope(raw)
    refused = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "rope_type": rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3"),
        "use_sliding_window": bool(raw.get("use_sliding_window", False)),
        "attention_bias": kind != "qwen2" and bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1) != 1,
    }
    if any(refused.values()):
        found = ", ".join(f"{n}={rope.get(n, raw.get(n))!r}" for n, bad in refused.items() if bad)
        raise CheckpointError(f"{path} sets {found}, which this network does not implement.")


def _rope_scaling(path: Path, rope: dict[str, Any]) -> RopeScaling | None:
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return None
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_context=int(rope["original_max_position_embeddings"]),
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} stretches the rotary embedding in a way that makes no sense: {error}."
        ) from error


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
    """Load a Qwen3, Qwen2 or Llama checkpoint. Raises CheckpointError when it is missing, torn or of another kind."""
    directory = Path(directory)
    model = CausalLM(load_hf_config(directory)).to(dtype)
    load_tensors(model, _read_tensors(directory))
    return model


def _kind(config: ModelConfig) -> str:
    if config.qk_norm and config.qkv_bias:
        raise CheckpointError("no Hugging Face model has both qk_norm (Qwen3) and qkv_bias (Qwen2).")
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What ``config.json`` says, read alike by transformers 4 and 5 and by vLLM."""
    kind = _kind(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    found = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "rope_theta": config.rope_theta,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tie,
        "max_position_embeddings": config.max_context,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if config.rope_scaling is not None:
        found["rope_scaling"] = rope  # where transformers 4 looks for it
    return found


def save_hf(
    model: CausalLM, directory: Path | str, tokenizer: Tokenizer | None = None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a directory that ``transformers`` and vLLM load: config.json, safetensors, the tokenizer's files."""
    save_weights(model.config, plain_parameters(model), directory, tokenizer, shard_bytes=shard_bytes)


def save_weights(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    directory: Path | str,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The same for tensors under Hugging Face's names. ``dtype``: convert to it; None: as they are. More than
    ``shard_bytes`` is written as several files and an index."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = dtype or next(iter(tensors.values())).dtype
    content = hf_config(config, dtype)
    shards = _shards({name: t.numel() * dtype.itemsize for name, t in tensors.items()}, shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        part = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in shard}
        partial = directory / f"{file}.partial"
        save_file(part, partial, metadata={"format": "pt"})
        partial.replace(directory / file)
        weight_map |= dict.fromkeys(shard, file)
    _write_index(directory, weight_map, sum(t.numel() * dtype.itemsize for t in tensors.values()))
    for stale in directory.glob("model*.safetensors"):
        if stale.name not in names:
            stale.unlink()
    _write_json(directory / "config.json", content)
    if tokenizer is not None:
        tokenizer.save(directory)


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut where the next one would exceed ``limit`` bytes; a larger tensor has a file of its own."""
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_index(directory: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    if len(set(weight_map.values())) == 1:
        (directory / _INDEX).unlink(missing_ok=True)
        return
    _write_json(directory / _INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
