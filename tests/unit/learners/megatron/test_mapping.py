"""Weights on their way to Megatron and back: bit for bit, for every family and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.errors import CheckpointError, RecipeError
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.mapping import HEAD_COPY, Entry, entries, to_hf, to_megatron
from roll_core.models.qwen import ModelConfig, parameter_shapes

torch.set_num_threads(1)
FAMILIES = {"qwen3": (True, False), "qwen2": (False, True), "llama": (False, False)}


@st.composite
def cut_models(draw: st.DrawFn) -> tuple[ModelConfig, Layout]:
    qk_norm, qkv_bias = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    tensor, pipeline = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 3]))
    kv_heads = tensor * draw(st.integers(1, 2))
    config = ModelConfig(
        vocab=draw(st.integers(3, 70)),
        hidden=draw(st.integers(1, 9)),
        layers=pipeline * draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 3)),
        intermediate=tensor * draw(st.integers(1, 5)),
        tie=draw(st.booleans()),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
    )
    return config, Layout(tensor, pipeline)


def numbered(config: ModelConfig) -> dict[str, torch.Tensor]:
    """No two numbers alike, so that nothing can change places unseen."""
    found, begin = {}, 0
    for name, shape in parameter_shapes(config).items():
        size = int(torch.tensor(shape).prod())
        found[name] = torch.arange(begin, begin + size, dtype=torch.float64).reshape(shape)
        begin += size
    return found


def parts(config: ModelConfig, layout: Layout, tensors: dict) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    return {
        (stage, rank): to_megatron(tensors, config, layout, tensor_rank=rank, stage=stage)
        for stage in range(layout.pipeline)
        for rank in range(layout.tensor)
    }


@settings(max_examples=60)
@given(cut_models())
def test_there_and_back_gives_the_same_bits(cut: tuple[ModelConfig, Layout]) -> None:
    config, layout = cut
    layout.check(config)
    tensors = numbered(config)
    held = parts(config, layout, tensors)

    def shards(entry: Entry) -> list[torch.Tensor]:
        return [held[entry.stage, rank][entry.name] for rank in range(layout.tensor)]

    found = to_hf(shards, config, layout)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@settings(max_examples=30)
@given(cut_models())
def test_every_number_lies_in_one_shard_and_norms_in_all(cut: tuple[ModelConfig, Layout]) -> None:
    config, layout = cut
    tensors = numbered(config)
    held = parts(config, layout, tensors)
    whole = {e.name for e in entries(config, layout) if e.kind == "whole"}
    copied = HEAD_COPY if config.tie else ""
    once = [
        t.flatten()
        for (_, rank), part in held.items()
        for name, t in part.items()
        if (rank == 0 or name not in whole) and name != copied
    ]
    numbers = torch.cat(once)
    numbers = numbers[numbers > 0]  # padding is 0, and so is the very first number
    assert len(numbers.unique()) == len(numbers) == sum(t.numel() for t in tensors.values()) - 1


def test_a_group_of_queries_stays_with_its_key_and_value() -> None:
    config = ModelConfig(vocab=5, hidden=1, layers=1, heads=4, kv_heads=2, head_dim=2, intermediate=2, qk_norm=False)
    tensors = {name: torch.zeros(shape) for name, shape in parameter_shapes(config).items()}
    prefix = "model.layers.0.self_attn."
    tensors[prefix + "q_proj.weight"] = torch.tensor([[10.0], [11], [20], [21], [30], [31], [40], [41]])
    tensors[prefix + "k_proj.weight"] = torch.tensor([[1.0], [2], [3], [4]])
    tensors[prefix + "v_proj.weight"] = torch.tensor([[5.0], [6], [7], [8]])
    layout = Layout(tensor=2)
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    held = [to_megatron(tensors, config, layout, tensor_rank=r, stage=0)[name].flatten().tolist() for r in range(2)]
    assert held == [[10, 11, 20, 21, 1, 2, 5, 6], [30, 31, 40, 41, 3, 4, 7, 8]]


def test_the_last_stage_has_its_copy_of_a_tied_embedding() -> None:
    config = ModelConfig(vocab=5, hidden=2, layers=2, heads=2, kv_heads=2, head_dim=2, intermediate=2, tie=True)
    held = parts(config, Layout(pipeline=2), numbered(config))
    assert torch.equal(held[1, 0][HEAD_COPY], held[0, 0]["embedding.word_embeddings.weight"])
    assert HEAD_COPY not in held[0, 0]


def test_a_missing_tensor_is_named() -> None:
    config = ModelConfig(vocab=5, hidden=2, layers=1, heads=2, kv_heads=2, head_dim=2, intermediate=2)
    tensors = numbered(config)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight"):
        to_megatron(tensors, config, Layout(), tensor_rank=0, stage=0)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(tensor=4), r"tensor_parallel=4 does not divide the model's kv_heads=2; take one of \[1, 2\]"),
        (Layout(pipeline=2), r"pipeline_parallel=2 does not divide the model's layers=3; take one of \[1, 3\]"),
    ],
)
def test_a_layout_that_does_not_come_out_even_says_what_would_fit(layout: Layout, words: str) -> None:
    config = ModelConfig(vocab=5, hidden=2, layers=3, heads=4, kv_heads=2, head_dim=2, intermediate=8)
    with pytest.raises(RecipeError, match=words):
        layout.check(config)


def test_a_size_of_zero_is_no_layout() -> None:
    with pytest.raises(RecipeError, match="below 1"):
        Layout(tensor=0)
