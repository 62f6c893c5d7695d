"""What is read of attention, in chunks and head by head, is what full maps say, ours and Hugging Face's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from roll_core.algorithms.rhythm import RhythmSettings, fai_of, head_sets, head_span, waad_of
from roll_core.learners.actor_attn import AttentionReader
from roll_core.learners.base import Rhythm
from roll_core.models import CausalLM, ModelConfig, save_hf
from roll_core.models.attention import Slots, chosen_layers, head_rhythm, mean_maps
from roll_core.types import TrainBatch

torch.set_num_threads(1)

QWEN3 = ModelConfig(
    vocab=97, hidden=32, layers=6, heads=4, kv_heads=2, head_dim=16, intermediate=48, rope_theta=1e4, max_context=64
)


def randomised(config: ModelConfig, seed: int = 2) -> CausalLM:
    """Sharp, uneven attention: every parameter away from its neutral value."""
    model = CausalLM(config, seed=1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def conversation(seed: int, rows: int = 3, length: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several turns and unequal lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (rows, length), generator=generator)
    mask = torch.zeros(rows, length)
    for row in range(rows):
        at, end = 2, length - 7 * row
        while at < end:
            said, heard = torch.randint(1, 9, (2,), generator=generator).tolist()
            mask[row, at : min(end, at + said)] = 1
            at += said + heard
    return tokens, mask


def their_maps(model: CausalLM, tokens: torch.Tensor, path) -> list[torch.Tensor]:
    """Attention of every layer, BHTT, as a Hugging Face model with eager attention gives it."""
    transformers = pytest.importorskip("transformers")
    save_hf(model, path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return list(theirs.eval()(tokens, output_attentions=True).attentions)


def naive(maps: list[torch.Tensor], mask: torch.Tensor, chosen: RhythmSettings) -> Rhythm:
    """Full maps, averaged over heads first, one row at a time: the definition."""
    waad, fai = torch.zeros_like(mask), torch.zeros_like(mask)
    for row, own in enumerate(mask):
        heads = torch.cat([m[row] for m in maps])
        local, wide = head_sets(head_span(heads, own)[None], chosen.head_share)
        waad[row] = waad_of(heads[local[0]].mean(0), own, chosen.window)
        fai[row] = fai_of(heads[wide[0]].mean(0), own, chosen.horizon)
    return Rhythm(waad, fai)


def read(model: CausalLM, tokens: torch.Tensor, mask: torch.Tensor, chosen: RhythmSettings) -> Rhythm:
    return AttentionReader(model, chosen, shared=True, micro_batch_tokens=80).attended(tokens, mask).rhythm


@pytest.mark.parametrize(
    "config", [QWEN3, replace(QWEN3, kv_heads=4), replace(QWEN3, qk_norm=False, qkv_bias=True, tie=False)]
)
def test_waad_and_fai_are_those_of_hugging_faces_eager_attention(config, tmp_path):
    model, (tokens, mask) = randomised(config), conversation(5)
    chosen = RhythmSettings(horizon=(2, 9), window=4)
    maps = their_maps(model, tokens, tmp_path)
    expected = naive([maps[layer] for layer in chosen_layers(config.layers, chosen.layers)], mask, chosen)
    found = read(model, tokens, mask, chosen)
    assert_close(found.waad_BT, expected.waad_BT, atol=2e-5, rtol=1e-4)
    assert_close(found.fai_BT, expected.fai_BT, atol=2e-6, rtol=1e-4)
    assert found.fai_BT.any()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 200, 3000, 1 << 20]), st.integers(1, 12), st.integers(1, 12))
def test_any_split_into_chunks_reads_the_same(seed, elements, window, low):
    model, (tokens, mask) = randomised(replace(QWEN3, layers=3), seed), conversation(seed)
    reading = {"layers": (1, 2), "window": window, "horizon": (low, low + 10)}
    whole = head_rhythm(model, tokens, mask, **reading, map_elements=1 << 30)
    parts = head_rhythm(model, tokens, mask, **reading, map_elements=elements)
    assert_close(parts.span_BN, whole.span_BN, atol=1e-4, rtol=1e-5)
    assert_close(parts.waad_BNC, whole.waad_BNC, atol=1e-5, rtol=1e-5)
    assert_close(parts.fai_BNC, whole.fai_BNC, atol=1e-6, rtol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(0, 9))
def test_padding_and_other_rows_change_nothing(seed, padding):
    model, (tokens, mask) = randomised(replace(QWEN3, layers=3), seed), conversation(seed)
    chosen = RhythmSettings(horizon=(1, 20))
    together = read(model, tokens, mask, chosen)
    for row in range(len(mask)):
        wide = [torch.nn.functional.pad(x[row : row + 1], (0, padding)) for x in (tokens, mask)]
        alone = read(model, *wide, chosen)
        assert_close(alone.waad_BT[0, : mask.shape[1]], together.waad_BT[row], atol=2e-5, rtol=1e-5)
        assert_close(alone.fai_BT[0, : mask.shape[1]], together.fai_BT[row], atol=1e-6, rtol=1e-5)


def test_memory_holds_a_chunk_of_a_map_and_never_a_map(monkeypatch):
    from roll_core.models import attention

    model, (tokens, mask) = randomised(replace(QWEN3, layers=3)), conversation(1, rows=4)
    largest, original = 0, attention._map_rows

    def watched(*args):
        nonlocal largest
        rows = original(*args)
        largest = max(largest, rows.numel())
        return rows

    monkeypatch.setattr(attention, "_map_rows", watched)
    head_rhythm(model, tokens, mask, layers=(1, 2), window=4, horizon=(1, 9), map_elements=2000)
    assert 0 < largest <= 2000


def test_mean_maps_of_one_episode_are_those_of_hugging_face(tmp_path):
    model, (tokens, mask) = randomised(QWEN3), conversation(8, rows=1)
    maps = torch.cat([their_maps(model, tokens, tmp_path)[layer][0] for layer in (2, 3, 4)])
    sets = torch.zeros(2, 12, dtype=torch.bool)
    sets[0, [0, 5]], sets[1, [7, 8, 11]] = True, True
    found = mean_maps(model, tokens, mask, layers=(2, 3, 4), heads_SN=sets)
    own = mask[0] > 0
    assert_close(found[0], maps[[0, 5]].mean(0)[own], atol=1e-5, rtol=1e-4)
    assert_close(found[1], maps[[7, 8, 11]].mean(0)[own], atol=1e-5, rtol=1e-4)


def test_layers_are_evenly_spaced_in_the_middle_third():
    assert chosen_layers(36, 5) == (12, 15, 18, 21, 24)
    assert chosen_layers(28, 5) == (9, 11, 14, 16, 18)
    assert chosen_layers(3, 5) == (1, 2)
    assert chosen_layers(2, 5) == (0, 1)
    assert chosen_layers(1, 5) == (0,)
    assert chosen_layers(12, 1) == (6,)


@given(st.integers(1, 200), st.integers(1, 9))
def test_layers_lie_in_the_middle_third_of_any_model(layers, count):
    found = chosen_layers(layers, count)
    assert 1 <= len(found) <= count
    assert layers // 3 <= found[0] <= found[-1] <= 2 * layers // 3 < max(layers, 1)


def test_slots_put_values_back_where_they_were():
    mask = torch.tensor([[0.0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    slots = Slots.of(mask)
    assert slots.position_BC.tolist() == [[1, 3, 4], [4, 0, 0], [0, 0, 0]]
    values = torch.arange(1.0, 10).view(3, 3)
    assert slots.spread(values, 5).tolist() == [[0, 1, 0, 2, 3], [0, 0, 0, 0, 4], [0, 0, 0, 0, 0]]


# --- the role --------------------------------------------------------------------------------------------------------


def batch_of(tokens: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor) -> TrainBatch:
    rows = torch.zeros(len(tokens))
    return TrainBatch(
        tokens, mask, torch.ones_like(mask), torch.zeros_like(mask), advantages, tokens.new_zeros(tokens.shape), rows,
        rows.long(),
    )  # fmt: skip


def test_rows_without_advantage_are_spared():
    model, (tokens, mask) = randomised(replace(QWEN3, layers=3)), conversation(4)
    advantages = mask.clone()
    advantages[1] = 0
    chosen = RhythmSettings(horizon=(1, 20))
    reader = AttentionReader(model, chosen, shared=True)
    found, every = reader.rhythm(batch_of(tokens, mask, advantages)), read(model, tokens, mask, chosen)
    assert not found.waad_BT[1].any()
    assert not found.fai_BT[1].any()
    assert_close(found.waad_BT[[0, 2]], every.waad_BT[[0, 2]], atol=2e-5, rtol=1e-5)


def test_a_shared_reader_sees_the_learners_weights_without_a_copy_and_another_one_is_told():
    from roll_core.learners.torch_learner import TorchLearner

    model, (tokens, mask) = randomised(replace(QWEN3, layers=3)), conversation(4)
    learner = TorchLearner(model)
    chosen = RhythmSettings(horizon=(1, 20))
    shared = AttentionReader(model, chosen, shared=True)
    copied = AttentionReader(model, chosen, shared=False)
    batch = batch_of(tokens, mask, mask)
    assert shared.model is model
    assert torch.equal(shared.rhythm(batch).waad_BT, copied.rhythm(batch).waad_BT)
    learner.sft_step(tokens, mask, lr=0.05)
    after = shared.rhythm(batch).waad_BT
    assert not torch.equal(after, copied.rhythm(batch).waad_BT)
    copied.load_weights(learner.weights())
    assert torch.equal(after, copied.rhythm(batch).waad_BT)


def test_reading_attention_leaves_no_trace_in_the_learner():
    model, (tokens, mask) = randomised(replace(QWEN3, layers=3)), conversation(4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    AttentionReader(model, RhythmSettings(), shared=True).rhythm(batch_of(tokens, mask, mask))
    assert all(p.grad is None and p.requires_grad and torch.equal(p, before[n]) for n, p in model.named_parameters())


def grouped(model_seed: int = 2) -> tuple[CausalLM, TrainBatch]:
    """Six rows of unequal lengths in three groups, with names."""
    model, (tokens, mask) = randomised(replace(QWEN3, layers=3), model_seed), conversation(4, rows=6, length=60)
    batch = batch_of(tokens, mask, mask)
    return model, replace(batch, group_B=torch.tensor([0, 0, 1, 1, 2, 2]), trajectory_ids=tuple("abcdef"))


def rows_of(batch: TrainBatch, rows: list[int]) -> TrainBatch:
    """As a batch of its own: padded no wider than its own longest row."""
    length = int((batch.mask_BT[rows] > 0).nonzero()[:, 1].max()) + 1
    part = batch_of(batch.tokens_BT[rows, :length], batch.mask_BT[rows, :length], batch.advantages_BT[rows, :length])
    return replace(part, trajectory_ids=tuple(batch.trajectory_ids[row] for row in rows))


def test_what_was_read_ahead_is_bit_for_bit_what_the_batch_would_give_and_is_not_read_again(monkeypatch):
    model, batch = grouped()
    chosen = RhythmSettings(horizon=(1, 20))
    plain, ahead = (AttentionReader(model, chosen, shared=True) for _ in range(2))
    ahead.read_ahead(rows_of(batch, [2, 3]))
    read_again = []
    original = AttentionReader.attended
    monkeypatch.setattr(
        AttentionReader,
        "attended",
        lambda self, tokens, mask, rows=None: read_again.append(self) or original(self, tokens, mask, rows),
    )
    one, other = plain.rhythm(batch), ahead.rhythm(batch)
    assert torch.equal(one.waad_BT, other.waad_BT)
    assert torch.equal(one.fai_BT, other.fai_BT)
    assert plain.last is not None
    assert ahead.last is not None
    assert torch.equal(plain.last.attended.span_BN, ahead.last.attended.span_BN)
    assert torch.equal(plain.last.attended.local_BN, ahead.last.attended.local_BN)
    assert [read_again.count(reader) for reader in (plain, ahead)] == [3, 2]
    assert (plain.ahead_share, ahead.ahead_share) == (0, pytest.approx(1 / 3))


def test_group_by_group_is_what_one_pass_over_all_rows_reads():
    model, batch = grouped()
    chosen = RhythmSettings(horizon=(1, 20))
    found, every = (
        AttentionReader(model, chosen, shared=True).rhythm(batch),
        read(model, batch.tokens_BT, batch.mask_BT, chosen),
    )
    assert_close(found.waad_BT, every.waad_BT, atol=2e-5, rtol=1e-5)
    assert_close(found.fai_BT, every.fai_BT, atol=1e-6, rtol=1e-5)


def test_what_was_read_of_an_earlier_policy_is_forgotten():
    from roll_core.learners.torch_learner import TorchLearner

    model, batch = grouped()
    learner, chosen = TorchLearner(model), RhythmSettings(horizon=(1, 20))
    reader = AttentionReader(model, chosen, shared=True)
    reader.read_ahead(rows_of(batch, [0, 1]))
    learner.sft_step(batch.tokens_BT, batch.mask_BT, lr=0.05)
    reader.load_weights(learner.weights())
    found = reader.rhythm(batch).waad_BT
    assert reader.ahead_share == 0
    assert torch.equal(found, AttentionReader(model, chosen, shared=True).rhythm(batch).waad_BT)
