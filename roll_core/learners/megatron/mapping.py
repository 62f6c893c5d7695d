"""Weights between Hugging Face's names and Megatron's, for dense Qwen3, Qwen2 and Llama. Pure; needs no Megatron.

Megatron keeps queries, keys and values of a layer in one matrix, group by group (the queries of a key head, the key,
the value), gate and up of the MLP in another, and cuts each over the tensor-parallel ranks: by rows where a rank has
its own outputs, by columns where it has its own inputs.

Invariants: no arithmetic, only copies: Hugging Face → Megatron → Hugging Face gives the same bits, for every layout; a
tensor of the same shape as a weight (a gradient, an optimizer's moment) is mapped as the weight is.

Shape legend: H query heads, K key/value heads, G = H / K, E head dimension, D hidden, F intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from roll_core.errors import CheckpointError
from roll_core.learners.megatron.layout import Layout
from roll_core.models.qwen import ModelConfig

Kind = Literal["whole", "columns", "qkv", "gate_up", "vocabulary"]

HEAD_COPY = "output_layer.weight"
"""The last stage's own copy of a tied embedding, kept equal by Megatron; the first stage's is the one that counts."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter of Megatron's model and what it is made of. ``stage``: which pipeline stage has it."""

    name: str
    """Within its stage: layers are counted from the stage's first."""
    kind: Kind
    sources: tuple[str, ...]
    """Names in Hugging Face's model, in the order in which they are fused."""
    stage: int


def entries(config: ModelConfig, layout: Layout) -> Iterator[Entry]:
    """Every parameter once, whoever holds its shards; without the copy of a tied embedding."""
    last, per_stage = layout.pipeline - 1, config.layers // layout.pipeline
    yield Entry("embedding.word_embeddings.weight", "vocabulary", ("model.embed_tokens.weight",), 0)
    for layer in range(config.layers):
        stage, local = divmod(layer, per_stage)
        yield from _layer(config, f"model.layers.{layer}", f"decoder.layers.{local}", stage)
    yield Entry("decoder.final_layernorm.weight", "whole", ("model.norm.weight",), last)
    if not config.tie:
        yield Entry(HEAD_COPY, "vocabulary", ("lm_head.weight",), last)


def _layer(config: ModelConfig, hf: str, megatron: str, stage: int) -> Iterator[Entry]:
    def entry(name: str, kind: Kind, *sources: str) -> Entry:
        return Entry(f"{megatron}.{name}", kind, tuple(f"{hf}.{s}" for s in sources), stage)

    def qkv(what: str) -> tuple[str, ...]:
        return tuple(f"self_attn.{x}_proj.{what}" for x in "qkv")

    yield entry("input_layernorm.weight", "whole", "input_layernorm.weight")
    yield entry("self_attention.linear_qkv.weight", "qkv", *qkv("weight"))
    if config.qkv_bias:
        yield entry("self_attention.linear_qkv.bias", "qkv", *qkv("bias"))
    if config.qk_norm:
        yield entry("self_attention.q_layernorm.weight", "whole", "self_attn.q_norm.weight")
        yield entry("self_attention.k_layernorm.weight", "whole", "self_attn.k_norm.weight")
    yield entry("self_attention.linear_proj.weight", "columns", "self_attn.o_proj.weight")
    yield entry("pre_mlp_layernorm.weight", "whole", "post_attention_layernorm.weight")
    yield entry("mlp.linear_fc1.weight", "gate_up", "mlp.gate_proj.weight", "mlp.up_proj.weight")
    yield entry("mlp.linear_fc2.weight", "columns", "mlp.down_proj.weight")


def cut(entry: Entry, sources: Sequence[Tensor], config: ModelConfig, layout: Layout) -> list[Tensor]:
    """The shard of each tensor-parallel rank, contiguous copies."""
    tp = layout.tensor
    if entry.kind == "whole":
        shards: Sequence[Tensor] = [sources[0]] * tp
    elif entry.kind == "columns":
        shards = sources[0].chunk(tp, 1)
    elif entry.kind == "gate_up":
        shards = [torch.cat(both) for both in zip(*(s.chunk(tp) for s in sources), strict=True)]
    elif entry.kind == "qkv":
        shards = _fused(sources, config).chunk(tp)
    else:  # vocabulary
        padding = layout.padded_vocab(config.vocab) - config.vocab
        shards = torch.cat((sources[0], sources[0].new_zeros(padding, *sources[0].shape[1:]))).chunk(tp)
    return [s.clone(memory_format=torch.contiguous_format) for s in shards]


def join(entry: Entry, shards: Sequence[Tensor], config: ModelConfig) -> list[Tensor]:
    """What :func:`cut` was given, from the shards of all tensor-parallel ranks."""
    if entry.kind == "whole":
        return [shards[0].clone()]
    if entry.kind == "columns":
        return [torch.cat(tuple(shards), 1)]
    if entry.kind == "gate_up":
        halves = [s.chunk(2) for s in shards]
        return [torch.cat([h[i] for h in halves]) for i in range(2)]
    if entry.kind == "qkv":
        return _split(torch.cat(tuple(shards)), config)
    return [torch.cat(tuple(shards))[: config.vocab].clone()]  # vocabulary


def _fused(sources: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """q (H·E rows), k and v (K·E rows) → K groups of (G + 2)·E rows; works for weights and biases."""
    rest = sources[0].shape[1:]
    grouped = [s.reshape(config.kv_heads, -1, *rest) for s in sources]
    return torch.cat(grouped, 1).reshape(-1, *rest)


def _split(fused: Tensor, config: ModelConfig) -> list[Tensor]:
    rest, queries = fused.shape[1:], config.heads // config.kv_heads * config.head_dim
    grouped = fused.reshape(config.kv_heads, -1, *rest)
    parts = torch.split(grouped, [queries, config.head_dim, config.head_dim], 1)
    return [p.reshape(-1, *rest).clone() for p in parts]


def to_megatron(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: Layout, *, tensor_rank: int, stage: int
) -> dict[str, Tensor]:
    """The parameters of one rank, under the names in its model. Raises CheckpointError when a tensor is missing."""
    found: dict[str, Tensor] = {}
    for entry in entries(config, layout):
        copied = entry.stage == 0 and entry.kind == "vocabulary" and config.tie and 0 < stage == layout.pipeline - 1
        if entry.stage != stage and not copied:
            continue
        missing = [s for s in entry.sources if s not in tensors]
        if missing:
            raise CheckpointError(f"weights do not fit the model: missing {missing}")
        shard = cut(entry, [tensors[s] for s in entry.sources], config, layout)[tensor_rank]
        found[HEAD_COPY if copied else entry.name] = shard
    return found


def to_hf(shards: Callable[[Entry], Sequence[Tensor]], config: ModelConfig, layout: Layout) -> dict[str, Tensor]:
    """Every tensor under Hugging Face's name. ``shards``: an entry's shards in the order of the tensor ranks."""
    found: dict[str, Tensor] = {}
    for entry in entries(config, layout):
        found |= zip(entry.sources, join(entry, shards(entry), config), strict=True)
    return found
