"""Our network and Hugging Face's are the same function, and each reads the other's files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from roll_core.engines.decoder import Decoder, Piece
from roll_core.errors import CheckpointError
from roll_core.models import CausalLM, ModelConfig, Tokenizer, load_hf, parameter_shapes, save_hf, train_tokenizer
from roll_core.models.qwen import RMSNorm, RopeScaling

torch.set_num_threads(1)

QWEN3 = ModelConfig(
    vocab=97, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=48, rope_theta=1e6, max_context=64
)
QWEN2 = replace(QWEN3, qk_norm=False, qkv_bias=True, head_dim=8, tie=False)
LLAMA = replace(QWEN3, qk_norm=False, rope_theta=5e5, tie=False)
# With a context of 8, the 40 positions below meet all three ranges: kept, stretched, and between.
LLAMA3 = replace(LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8), rope_theta=100.0)
FAMILIES = [QWEN3, replace(QWEN3, tie=False), QWEN2, replace(QWEN2, tie=True), LLAMA, replace(LLAMA, tie=True), LLAMA3]


def randomised(config: ModelConfig) -> CausalLM:
    """Every parameter away from its neutral value, so that a forgotten norm weight or bias shows."""
    model = CausalLM(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("config", FAMILIES)
def test_logits_equal_those_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = randomised(config)
    save_hf(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens_BT = torch.randint(0, config.vocab, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, expected = model(tokens_BT), theirs(tokens_BT).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (logits.log_softmax(-1) - expected.log_softmax(-1)).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert load_hf(tmp_path).config == config


def test_the_engine_stretches_the_rotary_embedding_as_the_learner_does() -> None:
    model, ids = randomised(LLAMA3), list(range(40))
    decoder = Decoder(LLAMA3, slots=1, max_context=64, dtype=torch.float32)
    decoder.load(dict(model.named_parameters()))
    with torch.no_grad():
        expected_V = model(torch.tensor([ids]))[0, -1]
        logits_V = decoder.forward([Piece(0, 0, ids)], [0])[0]
    assert (logits_V - expected_V).abs().max() < 1e-4 * expected_V.abs().max()


def test_a_llama_written_by_transformers_loads_with_its_stretched_rotary_embedding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours = load_hf(tmp_path)
    assert ours.config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8)
    tokens_BT = torch.randint(0, 97, (1, 50))
    with torch.no_grad():
        logits, expected = ours(tokens_BT), theirs(tokens_BT).logits
    assert (logits - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


def test_a_checkpoint_written_by_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 12_345.0},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_hf(tmp_path)
    assert ours.config.rope_theta == 12_345.0
    tokens_BT = torch.arange(30).view(1, 30)
    with torch.no_grad():
        assert torch.allclose(ours(tokens_BT), theirs(tokens_BT).logits, atol=1e-5)


@pytest.mark.parametrize("shard_bytes", [1, 10_000, 10**9])
def test_a_checkpoint_in_shards_round_trips_exactly(tmp_path: Path, shard_bytes: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = randomised(QWEN3)
    save_hf(CausalLM(QWEN3), tmp_path, shard_bytes=4_000)  # what an earlier one left behind must not be read
    save_hf(model, tmp_path, shard_bytes=shard_bytes)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1) == (shard_bytes < 10**9)
    if index.exists():
        assert set(json.loads(index.read_text())["weight_map"].values()) == files
    loaded = load_hf(tmp_path)
    assert loaded.config == QWEN3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(theirs.model.layers[2].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)


def test_what_the_network_does_not_implement_is_refused_by_name(tmp_path: Path) -> None:
    save_hf(CausalLM(QWEN3), tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for key, value in {"model_type": "mistral", "hidden_act": "gelu", "use_sliding_window": True}.items():
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(CheckpointError, match=key):
            load_hf(tmp_path)
    path.write_text(json.dumps({**good, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}))
    with pytest.raises(CheckpointError, match="rope_type='yarn'"):
        load_hf(tmp_path)
    path.write_text(json.dumps({**good, "rope_parameters": {"rope_type": "llama3", "factor": 4.0}}))
    with pytest.raises(CheckpointError, match="low_freq_factor"):
        load_hf(tmp_path)
    path.write_text(json.dumps({**good, "intermediate_size": 50}))
    with pytest.raises(CheckpointError, match="expected"):
        load_hf(tmp_path)


def test_a_torn_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_hf(tmp_path)
    save_hf(CausalLM(QWEN3), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_hf(tmp_path)


def test_shapes_are_known_without_allocating() -> None:
    for config in (QWEN3, QWEN2):
        assert parameter_shapes(config) == {n: tuple(p.shape) for n, p in CausalLM(config).named_parameters()}


def test_padding_on_the_right_changes_nothing() -> None:
    model = randomised(QWEN3)
    tokens_BT = torch.arange(20).view(1, 20)
    with torch.no_grad():
        assert torch.allclose(model(tokens_BT)[:, :12], model(tokens_BT[:, :12]), atol=1e-5)


def test_the_hand_written_norm_has_the_right_gradient() -> None:
    norm = RMSNorm(6, 1e-3).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, w: torch.func.functional_call(norm, {"weight": w}, (a,)), (x, norm.weight)
    )


def test_transformers_reads_the_saved_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(["go to countertop 1"] * 4, 300, ["<|pad|>", "<|end|>"])
    save_hf(CausalLM(replace(QWEN3, vocab=tokenizer.vocab_size)), tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("go to countertop 1<|end|>") == Tokenizer.load(tmp_path).encode(
        "go to countertop 1<|end|>", specials=True
    )
