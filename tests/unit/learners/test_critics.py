"""Critics: whose state a value is of, who learns from what, and that nothing depends on how the work is cut."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from roll_core.algorithms import gae
from roll_core.algorithms.critics import ensemble
from roll_core.errors import CheckpointError
from roll_core.learners.critics import CriticLearner, CriticSettings, ValueModel
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch

torch.set_num_threads(1)
TINY = ModelConfig(vocab=31, hidden=16, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=32, max_context=64)


def make_batch(seed: int = 0, rows: int = 8, width: int = 24) -> TrainBatch:
    """Groups of four; rows of different lengths with two turns each, rewarded at their end; every third truncated."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, width)
    rewards = torch.zeros(rows, width)
    turns = torch.full((rows, width), -1)
    for row in range(rows):
        length = width - 2 * (row % 5)
        mask[row, 3:6] = mask[row, length - 4 : length] = 1
        turns[row, 3:6], turns[row, length - 4 : length] = 0, 1
        rewards[row, length - 1] = float(torch.rand((), generator=g) < 0.5)
        rewards[row, 5] = 0.25 * (row % 2)
    return TrainBatch(
        tokens_BT=torch.randint(0, TINY.vocab, (rows, width), generator=g),
        mask_BT=mask,
        attention_BT=torch.ones(rows, width),
        behaviour_logprobs_BT=torch.zeros(rows, width),
        advantages_BT=torch.zeros(rows, width),
        versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=rewards.sum(1),
        group_B=torch.arange(rows) // 4,
        turn_BT=turns,
        rewards_BT=rewards,
        truncated_B=torch.arange(rows) % 3 == 0,
    )


def make_critics(count: int = 2, *, heads: list[int] | None = None, trunk: int | None = None, **how) -> CriticLearner:
    """``heads``: seeds of the heads. ``trunk``: one seed for all trunks, else each has its own."""
    seeds = heads or list(range(1, count + 1))
    models = [ValueModel(CausalLM(TINY, seed=s if trunk is None else trunk), seed=s) for s in seeds]
    return CriticLearner(models, CriticSettings(**how))


def parameters(critics: CriticLearner, critic: int) -> Tensor:
    return torch.cat([p.detach().flatten() for p in critics.models[critic].parameters()])


def gradients(critics: CriticLearner) -> list[Tensor]:
    """Of every update from now on, in order, before clipping matters (settings give a high limit)."""
    captured: list[Tensor] = []
    for optimizer in critics._optimizers:
        optimizer.register_step_pre_hook(
            lambda opt, *_: captured.append(
                torch.cat([p.grad.flatten() for g in opt.param_groups for p in g["params"]])
            )
        )
    return captured


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_value_at_a_token_is_that_of_the_state_before_it_was_sampled() -> None:
    batch, critics = make_batch(), make_critics()
    before = critics.values(batch)
    assert before.shape == (2, 8, 24)
    assert torch.equal(before != 0, (batch.mask_BT > 0).expand(2, 8, 24))
    changed = copy.deepcopy(batch)
    changed.tokens_BT[0, 4] = (changed.tokens_BT[0, 4] + 1) % TINY.vocab
    after = critics.values(changed)
    assert torch.equal(after[:, 0, :5], before[:, 0, :5]), "neither itself nor what comes later"
    assert (after[:, 0, 5] != before[:, 0, 5]).all(), "but the next token's state holds it"
    assert (after[:, 0, 20:] != before[:, 0, 20:]).all()
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_values_are_the_head_on_the_hidden_state_of_the_token_before() -> None:
    batch, critics = make_batch(), make_critics()
    estimate = critics.estimate(batch)
    for m, model in enumerate(critics.models):
        with torch.no_grad():
            states_BT = model.head(model.trunk(batch.tokens_BT)).squeeze(-1)
        for row in range(8):
            length = 24 - 2 * (row % 5)
            for t in (3, 4, 5, length - 1):
                assert estimate.values_MBT[m, row, t] == pytest.approx(states_BT[row, t - 1].item(), abs=1e-5)
            assert estimate.final_MB[m, row] == pytest.approx(states_BT[row, length - 1].item(), abs=1e-5)


def test_padding_and_micro_batches_change_no_value() -> None:
    batch = make_batch()
    whole, cut = make_critics().estimate(batch), make_critics(micro_batch_tokens=1).estimate(batch)
    longer = copy.deepcopy(batch)
    longer.tokens_BT = torch.nn.functional.pad(batch.tokens_BT, (0, 9), value=3)
    longer.mask_BT = torch.nn.functional.pad(batch.mask_BT, (0, 9))
    padded = make_critics().estimate(longer)
    for other in (cut, padded):
        assert torch.allclose(other.values_MBT[:, :, :24], whole.values_MBT, atol=1e-5)
        assert torch.allclose(other.final_MB, whole.final_MB, atol=1e-5)


def test_the_first_token_is_no_state_and_a_row_without_a_response_has_no_value() -> None:
    batch, critics = make_batch(), make_critics(micro_batch_tokens=60)
    batch.mask_BT[0, 0] = 1
    batch.mask_BT[2] = 0
    estimate = critics.estimate(batch)
    assert (estimate.values_MBT[:, 0, 0] == 0).all()
    assert (estimate.values_MBT[:, 2] == 0).all()
    assert (estimate.final_MB[:, 2] == 0).all()
    assert critics.train_step(batch)["critic/skipped_updates"] == 0


def test_new_critics_begin_near_zero_and_apart_and_equal_ones_do_not_disagree() -> None:
    batch = make_batch()
    values = make_critics(trunk=1).values(batch)
    assert values.abs().max() < 1
    assert ensemble(values).std_BT[batch.mask_BT > 0].min() > 0
    same = make_critics(heads=[4, 4, 4], partition=False, epochs=2, updates_per_batch=1)
    same.train_step(batch)
    assert ensemble(same.values(batch)).std_BT.max() == 0


# --- learning --------------------------------------------------------------------------------------------------------


def test_a_critic_learns_from_its_own_responses_and_from_no_others() -> None:
    batch = make_batch()
    probe = make_critics(2, seed=3)
    shares = probe._shares(batch, probe._rows(batch))
    assert sorted(shares[0].rows + shares[1].rows) == list(range(8))
    assert [sorted(r // 4 for r in s.rows) for s in shares] == [[0, 0, 1, 1]] * 2, "half of every prompt's responses"
    changed = copy.deepcopy(batch)
    assert changed.rewards_BT is not None
    changed.rewards_BT[shares[1].rows] += 3.0
    results = []
    for one in (batch, changed):
        critics = make_critics(2, seed=3)
        critics.train_step(one)
        results.append([parameters(critics, m) for m in (0, 1)])
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[1][1])


def test_without_a_partition_every_critic_learns_from_all() -> None:
    critics = make_critics(2, partition=False)
    batch = make_batch()
    assert [s.rows for s in critics._shares(batch, critics._rows(batch))] == [list(range(8))] * 2


def test_the_gradient_is_that_of_the_mean_squared_error_however_the_batch_is_cut() -> None:
    batch = make_batch()
    assert batch.rewards_BT is not None
    found = []
    for tokens in (10_000, 60, 1):
        how = {"updates_per_batch": 1, "max_grad_norm": 1e9, "bootstrap": False, "value_clip": None}
        critics = make_critics(1, micro_batch_tokens=tokens, **how)
        captured = gradients(critics)
        metrics = critics.train_step(batch)
        found.append((captured[0], metrics["critic/loss"], metrics["critic/explained_variance"]))
    model = make_critics(1).models[0]
    returns = gae(batch.rewards_BT, torch.zeros_like(batch.mask_BT), batch.mask_BT, 1.0, 1.0)[1]
    states = model.head(model.trunk(batch.tokens_BT)).squeeze(-1)
    values = torch.nn.functional.pad(states[:, :-1], (1, 0))
    loss = ((values - returns).square() * batch.mask_BT).sum() / batch.mask_BT.sum()
    loss.backward()
    named = [p for p in model.parameters() if p.dim() > 1] + [p for p in model.parameters() if p.dim() <= 1]
    expected = torch.cat([p.grad.flatten() for p in named if p.grad is not None])
    for gradient, value, explained in found:
        assert (gradient - expected).abs().max() < 1e-5
        assert value == pytest.approx(loss.item(), abs=1e-5)
        assert explained == pytest.approx(found[0][2], abs=1e-5)


@pytest.mark.parametrize("targets", ["monte_carlo", "gae"])
@pytest.mark.parametrize("level", ["token", "turn"])
def test_targets_are_the_returns_and_truncated_rows_go_on_in_their_last_state(targets: str, level: str) -> None:
    batch, how = make_batch(), {"gamma": 0.9, "lam": 0.8, "targets": targets, "level": level}
    critics = make_critics(1, **how)
    estimate = critics.estimate(batch)
    share = critics._shares(batch, critics._rows(batch))[0]
    plain = make_critics(1, **how, bootstrap=False)
    ends = plain._shares(batch, plain._rows(batch))[0]
    assert batch.rewards_BT is not None
    values, final = estimate.values_MBT[0], estimate.final_MB[0]
    for row in range(8):
        length = 24 - 2 * (row % 5)
        where = [3, 4, 5, *range(length - 4, length)]
        steps = where if level == "token" else [3, length - 4]
        earned = batch.rewards_BT[row, where] if level == "token" else batch.rewards_BT[row, [5, length - 1]]
        worth = [float(final[row])] if row % 3 == 0 else [0.0]
        for end, found in ((worth, share), ([0.0], ends)):
            base = [values[row, t].item() if targets == "gae" else 0.0 for t in steps]
            lam, running, expected = (0.8 if targets == "gae" else 1.0), 0.0, []
            following = end[0]
            for reward, value in zip(reversed(earned.tolist()), reversed(base), strict=True):
                running = reward + 0.9 * following - value + 0.9 * lam * running
                following = value
                expected.insert(0, running + value)
            for t, value in zip(steps, expected, strict=True):
                assert found.returns_BT[row, t].item() == pytest.approx(value, abs=1e-5)


def test_critics_learn_what_a_state_is_worth_and_metrics_say_so() -> None:
    """Whether an episode succeeds stands in the prompt's last token."""
    g = torch.Generator().manual_seed(0)
    critics = make_critics(2, lr=1e-2, value_clip=0.5, bootstrap=False)
    told = []
    for _ in range(40):
        batch = make_batch(rows=32)
        batch.tokens_BT = torch.randint(2, TINY.vocab, (32, 24), generator=g)
        batch.tokens_BT[:, 2] = torch.randint(0, 2, (32,), generator=g)
        assert batch.rewards_BT is not None
        batch.rewards_BT = torch.zeros(32, 24)
        last = [23 - 2 * (r % 5) for r in range(32)]
        batch.rewards_BT[range(32), last] = batch.tokens_BT[:, 2].float()
        told.append(critics.train_step(batch))
    assert told[0]["critic/explained_variance"] < 0.1
    assert told[-1]["critic/explained_variance"] > 0.8
    assert told[-1]["critic/loss"] < 0.3 * told[0]["critic/loss"]
    assert told[-1]["critic/updates"] == 8
    values = critics.values(batch)[:, :, 3]
    assert (values[:, batch.tokens_BT[:, 2] == 1].mean(1) > 0.6).all()
    assert (values[:, batch.tokens_BT[:, 2] == 0].mean(1) < 0.4).all()


def test_values_stay_within_the_clip_s_reach_of_the_old_ones() -> None:
    """Hundreds of passes over one batch: without a clip values go where the returns are, with one they halt at it."""
    batch = make_batch()
    assert batch.rewards_BT is not None
    batch.rewards_BT = batch.rewards_BT * 100
    moved = []
    for clip in (None, 0.1):
        critics = make_critics(1, lr=3e-3, epochs=40, updates_per_batch=1, value_clip=clip, bootstrap=False)
        old = critics.values(batch)
        metrics = critics.train_step(batch)
        moved.append(((critics.values(batch) - old).abs().max().item(), metrics["critic/clip_fraction"]))
    assert moved[0][0] > 1
    assert moved[0][1] == 0
    assert moved[1][0] < moved[0][0] / 2
    assert moved[1][1] > 0.3


def test_memory_is_counted_from_what_is_there() -> None:
    critics = make_critics(2)
    count = sum(p.numel() for m in critics.models for p in m.parameters())
    assert critics.memory_bytes() == 4 * count
    metrics = critics.train_step(make_batch())
    tensors = sum(1 for m in critics.models for _ in m.parameters())
    assert metrics["critic/memory_bytes"] == 3 * 4 * count + 4 * tensors, "two moments, and a step count a tensor"


def test_a_gradient_that_is_not_finite_is_never_applied() -> None:
    critics, batch = make_critics(1, updates_per_batch=1), make_batch()
    before = parameters(critics, 0)
    assert batch.rewards_BT is not None
    batch.rewards_BT[0, 23] = math.inf
    assert critics.train_step(batch)["critic/skipped_updates"] == 1
    assert torch.equal(parameters(critics, 0), before)
    assert critics.train_step(make_batch())["critic/skipped_updates"] == 0
    assert not torch.equal(parameters(critics, 0), before)


def test_values_and_steps_leave_the_batch_as_it_was() -> None:
    batch, critics = make_batch(), make_critics()
    kept = copy.deepcopy(batch)
    critics.train_step(batch)
    critics.values(batch)
    for name in ("tokens_BT", "mask_BT", "rewards_BT", "truncated_B", "group_B", "rewards_B", "turn_BT"):
        assert torch.equal(getattr(batch, name), getattr(kept, name)), name


def test_a_batch_without_rewards_per_token_is_refused() -> None:
    batch = make_batch()
    batch.rewards_BT = None
    with pytest.raises(ValueError, match="rewards_BT"):
        make_critics().train_step(batch)
    with pytest.raises(ValueError, match="at least one"):
        CriticLearner([])


# --- state -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_continues_bit_for_bit(tmp_path: Path) -> None:
    how = {"lr": 1e-2, "updates_per_batch": 3, "epochs": 2, "weight_decay": 0.1, "seed": 5}
    straight = make_critics(3, **how)
    straight.train_step(make_batch(0))
    straight.save(tmp_path)
    resumed = make_critics(3, heads=[7, 8, 9], **how)
    resumed.load(tmp_path)
    for seed in (1, 2):
        batch = make_batch(seed)
        assert torch.equal(straight.values(batch), resumed.values(batch))
        a, b = straight.train_step(batch), resumed.train_step(batch)
        assert a | {"critic/step_s": 0} == b | {"critic/step_s": 0}
    for m in range(3):
        assert torch.equal(parameters(straight, m), parameters(resumed, m))


def test_shares_are_drawn_anew_at_every_step_and_by_seed() -> None:
    def owned(critics: CriticLearner) -> list[int]:
        batch = make_batch()
        return critics._shares(batch, critics._rows(batch))[0].rows

    critics = make_critics(2)
    first = owned(critics)
    drawn = [first]
    for _ in range(5):
        critics.train_step(make_batch())
        drawn.append(owned(critics))
    assert len({tuple(rows) for rows in drawn}) > 2
    assert owned(make_critics(2)) == first


def test_a_missing_torn_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    critics = make_critics(2)
    with pytest.raises(CheckpointError, match="2 critics of 2 layers of width 16 over 31 tokens"):
        critics.load(tmp_path)
    critics.save(tmp_path)
    content = (tmp_path / "critics.pt").read_bytes()
    (tmp_path / "critics.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        critics.load(tmp_path)
    for other in (
        make_critics(1),
        CriticLearner([ValueModel(CausalLM(ModelConfig(31, 8, 1, 2, 1, 8, 32)), seed=1)] * 2),
    ):
        other.save(tmp_path)
        with pytest.raises(CheckpointError):
            critics.load(tmp_path)
