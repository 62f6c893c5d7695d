"""The learner: micro-batches add up, π_prox and π_behave are kept apart, checkpoints continue bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from roll_core.algorithms import POLICY_LOSSES, LossInputs
from roll_core.errors import CheckpointError
from roll_core.learners import LearnerConfig
from roll_core.learners.batching import micro_batches, row_lengths
from roll_core.learners.logprobs import score
from roll_core.learners.optimizers import make_optimizers
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch

torch.set_num_threads(1)
TINY = ModelConfig(vocab=31, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=32, max_context=64)


def make_batch(seed: int = 0, rows: int = 6, width: int = 24, spread: float = 0.3) -> TrainBatch:
    """Rows of different lengths with two stretches of response each; behaviour log-probs near a uniform policy's."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, width)
    attention = torch.zeros(rows, width)
    for row in range(rows):
        length = width - 2 * row
        attention[row, :length] = 1
        mask[row, 3:6] = 1
        mask[row, length - 4 : length] = 1
    behaviour = (-math.log(TINY.vocab) + spread * torch.randn(rows, width, generator=g)) * mask
    return TrainBatch(
        tokens_BT=torch.randint(0, TINY.vocab, (rows, width), generator=g),
        mask_BT=mask,
        attention_BT=attention,
        behaviour_logprobs_BT=behaviour,
        advantages_BT=torch.randn(rows, 1, generator=g) * mask,
        versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=torch.zeros(rows),
        group_B=torch.zeros(rows, dtype=torch.int64),
    )


def parameters(learner: TorchLearner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def full_logprobs(model: CausalLM, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The obvious way: logits of everything."""
    body = model(tokens_BT).log_softmax(-1)[:, :-1].gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    return torch.cat((torch.zeros(len(body), 1), body), 1) * mask_BT


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = list(micro_batches(list(range(len(lengths))), lengths, tokens))
    assert sorted(r for b in batches for r in b) == [r for r, n in enumerate(lengths) if n]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[r] for r in batch) <= tokens
        assert lengths[batch[0]] == max(lengths[r] for r in batch)


@pytest.mark.parametrize("head_tokens", [1000, 5])
def test_log_probs_and_their_gradient_are_those_of_the_whole_logits(head_tokens: int) -> None:
    batch, model = make_batch(), CausalLM(TINY, seed=3)
    expected = full_logprobs(model, batch.tokens_BT, batch.mask_BT)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    scored = score(model, batch.tokens_BT, batch.mask_BT, head_tokens=head_tokens, entropy_gradient=True)
    scored.logprobs_BT.square().sum().backward()
    assert torch.allclose(scored.logprobs_BT, expected, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-4)
    uniform_minus_entropy = math.log(TINY.vocab) - scored.entropy_BT[batch.mask_BT > 0]
    assert (uniform_minus_entropy > 0).all()
    assert row_lengths(batch.mask_BT) == [24, 22, 20, 18, 16, 14]


@pytest.mark.parametrize("loss", sorted(POLICY_LOSSES))
def test_micro_batches_train_like_one_big_batch(loss: str) -> None:
    results = []
    for tokens in (10_000, 50, 1):
        config = LearnerConfig(loss=loss, micro_batch_tokens=tokens, entropy_coef=0.01, kl_coef=0.1, max_grad_norm=1e9)
        learner = TorchLearner(CausalLM(TINY, seed=1), config, reference=CausalLM(TINY, seed=2))
        captured: list[Tensor] = []
        learner._optimizers[0].register_step_pre_hook(
            lambda opt, *_, out=captured: out.append(
                torch.cat([p.grad.flatten() for g in opt.param_groups for p in g["params"]])
            )
        )
        metrics = learner.train_step(make_batch())
        results.append((captured[0], metrics))
    assert results[0][1]["learner/padding_share"] > results[2][1]["learner/padding_share"] == 0  # row by row: none
    for gradient, metrics in results[1:]:
        assert (gradient - results[0][0]).abs().max() < 1e-6
        for name in metrics.keys() - {"learner/step_s", "learner/padding_share"}:
            assert metrics[name] == pytest.approx(results[0][1][name], abs=1e-5), name


@pytest.mark.parametrize("loss", sorted(POLICY_LOSSES))
def test_rows_without_advantage_are_spared_and_change_nothing(loss: str) -> None:
    silent, whispering = make_batch(), make_batch()
    silent.advantages_BT[2:4] = 0.0
    whispering.advantages_BT[2:4] = 1e-30 * whispering.mask_BT[2:4]  # scored, though it says nothing
    after, counted = [], []
    for batch in (silent, whispering):
        learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(loss=loss, updates_per_batch=2, epochs=2))
        metrics = learner.train_step(batch)
        after.append(parameters(learner))
        counted.append(metrics["learner/loss"])
    assert torch.allclose(after[0], after[1], atol=1e-6)
    assert counted[0] == pytest.approx(counted[1], abs=1e-6)


def test_the_loss_is_the_registry_s_on_the_whole_batch() -> None:
    batch, model = make_batch(), CausalLM(TINY, seed=1)
    with torch.no_grad():
        logprobs = full_logprobs(model, batch.tokens_BT, batch.mask_BT)
    for name in ("grpo", "tis", "decoupled_ppo"):
        prox = logprobs if name == "decoupled_ppo" else batch.behaviour_logprobs_BT
        inputs = LossInputs(logprobs, prox, batch.behaviour_logprobs_BT, batch.advantages_BT, batch.mask_BT)
        learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(loss=name))
        assert learner.train_step(batch)["learner/loss"] == pytest.approx(POLICY_LOSSES[name](inputs).item(), abs=1e-5)


def test_metrics_tell_how_far_the_behaviour_policy_is() -> None:
    batch = make_batch()
    learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(loss="grpo"))
    batch.behaviour_logprobs_BT = learner.logprobs(batch.tokens_BT, batch.mask_BT)
    metrics = learner.train_step(batch)
    assert metrics["learner/behaviour_gap_max"] < 1e-6
    assert metrics["learner/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics["learner/clip_fraction"] == 0
    assert metrics["learner/response_tokens"] == 42
    assert metrics["learner/tokens"] == 24 + 22 + 20 + 18 + 16 + 14
    assert metrics["learner/token_staleness"] == 0
    assert learner.train_step(batch)["learner/token_staleness"] == 1
    assert learner.version == learner.weights().version == 2


def test_prox_is_recomputed_once_and_behaviour_never() -> None:
    """With several updates the ratio of decoupled PPO moves away from 1 within the batch, and only within it."""
    config = LearnerConfig(loss="decoupled_ppo", lr=1e-2, updates_per_batch=2, epochs=2)
    learner = TorchLearner(CausalLM(TINY, seed=1), config)
    batch = make_batch()
    before = batch.behaviour_logprobs_BT.clone()
    metrics = learner.train_step(batch)
    assert metrics["learner/updates"] == 4
    assert abs(metrics["learner/ratio_mean"] - 1) > 1e-4
    assert torch.equal(batch.behaviour_logprobs_BT, before)
    single = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(loss="decoupled_ppo", lr=1e-2))
    for _ in range(2):
        assert single.train_step(batch)["learner/ratio_mean"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_continues_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    config = LearnerConfig(
        optimizer=optimizer,
        lr=1e-2,
        updates_per_batch=3,
        epochs=2,
        warmup_updates=20,
        kl_coef=0.1,
        weight_decay=0.1,
        seed=5,
    )
    straight = TorchLearner(CausalLM(TINY, seed=1), config)
    straight.train_step(make_batch(0))
    straight.save(tmp_path)
    resumed = TorchLearner(CausalLM(TINY, seed=9), config)
    resumed.load(tmp_path)
    assert resumed.version == 1
    for seed in (1, 2):
        a, b = straight.train_step(make_batch(seed)), resumed.train_step(make_batch(seed))
        assert {k: v for k, v in a.items() if k != "learner/step_s"} == {
            k: v for k, v in b.items() if k != "learner/step_s"
        }
    assert torch.equal(parameters(straight), parameters(resumed))


def test_a_missing_torn_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    learner = TorchLearner(CausalLM(TINY))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        learner.load(tmp_path)
    learner.save(tmp_path)
    content = (tmp_path / "learner.pt").read_bytes()
    (tmp_path / "learner.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        learner.load(tmp_path)
    TorchLearner(CausalLM(ModelConfig(31, 16, 1, 2, 1, 8, 32))).save(tmp_path)
    with pytest.raises(CheckpointError):
        learner.load(tmp_path)


def test_a_gradient_that_is_not_finite_is_never_applied() -> None:
    learner = TorchLearner(CausalLM(TINY, seed=1))
    before, batch = parameters(learner), make_batch()
    batch.advantages_BT[0, 3] = math.inf
    assert learner.train_step(batch)["learner/skipped_updates"] == 1
    assert torch.equal(parameters(learner), before)
    assert learner.train_step(make_batch())["learner/skipped_updates"] == 0
    assert not torch.equal(parameters(learner), before)


def test_warm_up_raises_the_rate_linearly() -> None:
    learner = TorchLearner(CausalLM(TINY), LearnerConfig(lr=4e-3, warmup_updates=4))
    rates = [learner.train_step(make_batch())["learner/lr"] for _ in range(6)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 4e-3, 4e-3])


def test_the_rate_falls_linearly_with_the_progress_of_the_run() -> None:
    learner = TorchLearner(CausalLM(TINY), LearnerConfig(lr=1e-2, lr_end=0.1))
    rates = [learner.train_step(make_batch(), progress=p)["learner/lr"] for p in (0.0, 0.5, 1.0, 1.5)]
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])


def test_imitation_learns_the_masked_tokens_and_no_others() -> None:
    learner = TorchLearner(CausalLM(TINY, seed=1), LearnerConfig(lr=1e-2, micro_batch_tokens=50))
    batch = make_batch()
    losses = [learner.sft_step(batch.tokens_BT, batch.mask_BT)["learner/loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(math.log(TINY.vocab), abs=0.3)
    assert losses[-1] < 0.5
    context = (batch.attention_BT - batch.mask_BT)[:, 1:]
    context_logprobs = learner.logprobs(batch.tokens_BT, torch.nn.functional.pad(context, (1, 0)))
    assert -context_logprobs.sum() / context.sum() > 2
    assert learner.version == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(optimizer: str) -> None:
    model = CausalLM(TINY)
    optimizers = make_optimizers(model, LearnerConfig(optimizer=optimizer))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_muon_trains_matrices_but_not_the_vocabulary() -> None:
    model = CausalLM(TINY)
    muon, adamw = make_optimizers(model, LearnerConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert of_muon
    assert all("proj" in name for name in of_muon)
    assert any("embed" in names[id(p)] for group in adamw.param_groups for p in group["params"])


def test_weights_are_a_copy() -> None:
    learner = TorchLearner(CausalLM(TINY, seed=1))
    weights = learner.weights()
    name = "model.norm.weight"
    weights.tensors[name].zero_()
    assert learner.model.get_parameter(name).abs().min() > 0
    assert weights.tensors.keys() == dict(learner.model.named_parameters()).keys()


def test_a_recipe_s_mistakes_are_errors() -> None:
    with pytest.raises(ValidationError, match="expected one of"):
        LearnerConfig(loss="pgo")
    with pytest.raises(ValidationError):
        LearnerConfig(learning_rate=1.0)  # type: ignore[call-arg]
    changed = LearnerConfig(loss="dapo", clip_low=0.1, aggregation="constant-length", length=50).policy_loss()
    assert (changed.options.clip_low, changed.options.clip_high) == (0.1, 0.28)
    assert (changed.aggregation, changed.options.length) == ("constant-length", 50)
