"""Adapters: nothing at first, everything that is learnt, and nobody outside the learner notices them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig, load_hf, save_hf
from roll_core.models.lora import LoraLinear, add_lora, plain_copy, plain_parameters
from roll_core.types import TrainBatch

torch.set_num_threads(1)

CONFIG = ModelConfig(
    vocab=40, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48, max_context=64, qkv_bias=True,
    qk_norm=False,
)  # fmt: skip
TOKENS_BT = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(3))


def trained(rank: int = 4) -> CausalLM:
    """A model whose adapters are away from zero."""
    model = add_lora(CausalLM(CONFIG, seed=1), rank, alpha=8.0, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(0, 0.3, generator=generator)
    return model


def batch() -> TrainBatch:
    mask = torch.ones(TOKENS_BT.shape)
    mask[:, :4] = 0
    advantages = torch.tensor([[1.0], [-1.0]]) * mask
    return TrainBatch(
        tokens_BT=TOKENS_BT, mask_BT=mask, attention_BT=torch.ones(TOKENS_BT.shape),
        behaviour_logprobs_BT=-3.7 * mask, advantages_BT=advantages, versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=torch.tensor([1.0, 0.0]), group_B=torch.zeros(2, dtype=torch.int64),
    )  # fmt: skip


def test_a_new_adapter_changes_nothing() -> None:
    before = CausalLM(CONFIG, seed=1)
    after = add_lora(CausalLM(CONFIG, seed=1), 4, alpha=8.0)
    with torch.no_grad():
        assert torch.equal(before(TOKENS_BT), after(TOKENS_BT))
    assert plain_parameters(after).keys() == dict(before.named_parameters()).keys()
    assert all(torch.equal(plain_parameters(after)[n], p) for n, p in before.named_parameters())


def test_every_matrix_of_the_blocks_has_one_and_nothing_else_is_trained() -> None:
    model = trained()
    assert sum(isinstance(m, LoraLinear) for m in model.modules()) == 7 * CONFIG.layers
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}


def test_merged_weights_are_the_same_policy() -> None:
    model = trained()
    with torch.no_grad():
        expected = model(TOKENS_BT)
        assert not torch.allclose(expected, CausalLM(CONFIG, seed=1)(TOKENS_BT), atol=1e-2)
        assert torch.allclose(plain_copy(model)(TOKENS_BT), expected, atol=1e-5)


def test_the_learner_trains_adapters_alone_and_publishes_merged_weights() -> None:
    model = add_lora(CausalLM(CONFIG, seed=1), 4, alpha=8.0)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    learner = TorchLearner(model, LearnerConfig(lr=1e-2, loss="tis"))
    first = learner.weights()
    for _ in range(3):
        learner.train_step(batch())
    last = learner.weights()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert last.tensors.keys() == dict(CausalLM(CONFIG).named_parameters()).keys()
    assert not torch.equal(
        first.tensors["model.layers.0.mlp.up_proj.weight"], last.tensors["model.layers.0.mlp.up_proj.weight"]
    )
    plain = CausalLM(CONFIG)
    plain.load_state_dict(last.tensors)
    with torch.no_grad():
        assert torch.allclose(plain(TOKENS_BT), model(TOKENS_BT), atol=1e-5)


def test_published_weights_do_not_change_when_training_goes_on() -> None:
    learner = TorchLearner(add_lora(CausalLM(CONFIG, seed=1), 4, alpha=8.0), LearnerConfig(lr=1e-2, loss="tis"))
    learner.train_step(batch())
    told = learner.weights()
    copies = {n: t.clone() for n, t in told.tensors.items()}
    learner.train_step(batch())
    assert all(torch.equal(told.tensors[n], t) for n, t in copies.items())


def test_a_saved_learner_goes_on_with_its_adapters(tmp_path: Path) -> None:
    def make() -> TorchLearner:
        return TorchLearner(add_lora(CausalLM(CONFIG, seed=1), 4, alpha=8.0), LearnerConfig(lr=1e-2, loss="tis"))

    one, other = make(), make()
    one.train_step(batch())
    one.save(tmp_path)
    other.load(tmp_path)
    for learner in (one, other):
        learner.train_step(batch())
    assert all(torch.equal(one.weights().tensors[n], t) for n, t in other.weights().tensors.items())


def test_the_files_hold_the_merged_model(tmp_path: Path) -> None:
    model = trained()
    save_hf(model, tmp_path)
    with torch.no_grad():
        assert torch.allclose(load_hf(tmp_path)(TOKENS_BT), model(TOKENS_BT), atol=1e-5)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        add_lora(CausalLM(CONFIG), 0, alpha=8.0)
    with pytest.raises(ValueError, match="already"):
        add_lora(trained(), 2, alpha=8.0)
