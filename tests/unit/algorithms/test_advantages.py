"""Advantages, divergences and masked reductions: published values and their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roll_core.algorithms import ADVANTAGES, entropy, gae, kl_estimate, masked_mean, masked_whiten, spread
from roll_core.algorithms.advantages import bnpo, dr_grpo, gigpo_steps, grpo, reinforce_pp, rloo

F64 = torch.float64


def test_group_advantages_have_the_published_values() -> None:
    rewards, group = torch.tensor([1.0, 0, 0, 1], dtype=F64), torch.zeros(4, dtype=torch.int64)
    sign = torch.tensor([1.0, -1, -1, 1], dtype=F64)
    assert torch.allclose(grpo(rewards, group), 0.866024 * sign, atol=1e-6)
    assert torch.allclose(dr_grpo(rewards, group), 0.5 * sign)
    assert torch.allclose(rloo(rewards, group), 2 / 3 * sign)


def test_gae_has_the_published_values() -> None:
    rewards = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, -1]], dtype=F64)
    values = torch.tensor([[0.5, 0.4, 0.3, 0], [0.1, 0.2, 0.3, 0.4]], dtype=F64)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]], dtype=F64)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    expected = torch.tensor([[0.43675, 0.565, 0.7, 0], [-0.915075, -1.0685, -1.23, -1.4]], dtype=F64)
    assert torch.allclose(advantages, expected)
    assert torch.allclose(returns, (expected + values) * mask)


def test_gae_passes_over_context_between_turns() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 1, 3, dtype=F64, generator=generator)
    dense, _ = gae(rewards, values, torch.ones(1, 3, dtype=F64), gamma=0.9)
    at = torch.tensor([1, 2, 5])
    gaps = [torch.full((1, 7), 9.0, dtype=F64).index_copy(1, at, x) for x in (rewards, values)]
    mask = torch.zeros(1, 7, dtype=F64).index_fill(1, at, 1.0)
    spaced, _ = gae(*gaps, mask, gamma=0.9)
    assert torch.allclose(spaced[:, at], dense)
    assert (spaced * (1 - mask) == 0).all()


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-10, 10)), min_size=1, max_size=12))
def test_a_group_sees_only_itself_and_its_advantages_sum_to_zero(members: list[tuple[int, float]]) -> None:
    group = torch.tensor([7 * g - 3 for g, _ in members])
    rewards = torch.tensor([r for _, r in members], dtype=F64)
    for name, advantage in ADVANTAGES.items():
        if name in {"reinforce_pp", "bnpo"}:  # these look at the whole batch
            continue
        result = advantage(rewards, group)
        for g in group.unique():
            rows = group == g
            alone = advantage(rewards[rows], group[rows])
            assert torch.allclose(result[rows], alone, atol=1e-9)
            assert abs(alone.sum().item()) < 1e-6
            if rows.sum() == 1:
                assert alone.item() == 0


def test_equal_rewards_teach_nothing() -> None:
    for reward in (0.1, 0.7, 1.0, 1e4 / 3):
        rewards, group = torch.full((6,), reward), torch.tensor([0, 0, 0, 1, 1, 1])
        for name, advantage in ADVANTAGES.items():
            if name == "bnpo" and reward > 1:
                continue
            assert advantage(rewards, group).abs().max() < 1e-4, (name, reward)


def test_reinforce_pp_whitens_over_the_batch() -> None:
    rewards = torch.tensor([3.0, -1, 4, 1, -5], dtype=F64)
    result = reinforce_pp(rewards, torch.arange(5))
    assert result.mean().item() == pytest.approx(0, abs=1e-12)
    assert result.std().item() == pytest.approx(1, abs=1e-6)


def test_spread_puts_the_advantage_on_response_tokens_only() -> None:
    mask = torch.tensor([[0.0, 1, 1], [0, 1, 0]])
    assert spread(torch.tensor([2.0, -1]), mask).tolist() == [[0, 2, 2], [0, -1, 0]]


def test_kl_estimators_have_the_published_values() -> None:
    logp, ref = torch.tensor([0.5, 0.25, 0.1], dtype=F64).log(), torch.tensor([0.4, 0.3, 0.2], dtype=F64).log()
    expected = {
        "k1": [0.223144, -0.182322, -0.693147],
        "k2": [0.024897, 0.016621, 0.240227],
        "k3": [0.023144, 0.017678, 0.306853],
    }
    for name, values in expected.items():
        assert torch.allclose(kl_estimate(logp, ref, name), torch.tensor(values, dtype=F64), atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(logp, ref, "k4")  # type: ignore[arg-type]


def test_entropy_is_that_of_the_distribution_and_survives_impossible_tokens() -> None:
    uniform = torch.full((2, 8), 1 / 8, dtype=F64).log()
    assert torch.allclose(entropy(uniform), torch.full((2,), math.log(8), dtype=F64))
    certain = torch.tensor([0.0, -math.inf], dtype=F64)
    assert entropy(certain).item() == 0


def test_masked_reductions_divide_by_their_own_count_and_ignore_what_is_outside() -> None:
    x = torch.tensor([[1.0, 3, math.nan], [5, math.inf, math.nan]])
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    assert masked_mean(x, mask).item() == 3
    assert masked_mean(x, mask, dim=1).tolist() == [2, 5]
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0
    white = masked_whiten(x, mask)
    assert white[mask.bool()].mean().item() == pytest.approx(0, abs=1e-6)
    assert (white[~mask.bool()] == 0).all()


def test_bnpo_divides_by_the_density_of_the_beta_that_its_authors_give() -> None:
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], dtype=F64)
    group = torch.arange(3).repeat_interleave(4)
    p = torch.tensor([0.25, 0.5, 0.75], dtype=F64)
    strength = p.mean() * (1 - p.mean()) / p.var(correction=0) - 1  # a + b, by the method of moments
    a, b = p.mean() * strength, (1 - p.mean()) * strength
    density = torch.distributions.Beta(1 + a / 3, 1 + b / 3).log_prob(p).exp()
    expected = (rewards - p[group]) / density[group]
    assert torch.allclose(bnpo(rewards, group), expected)


def test_bnpo_without_a_beta_to_fit_is_dr_grpo_and_hopeless_tasks_teach_nothing() -> None:
    rewards, group = torch.tensor([1.0, 0, 1, 0]), torch.tensor([0, 0, 1, 1])
    assert torch.equal(bnpo(rewards, group), dr_grpo(rewards, group))  # all groups alike
    extremes = torch.tensor([1.0, 1, 0, 0])
    assert (bnpo(extremes, group) == 0).all()
    mixed = bnpo(torch.tensor([1.0, 1, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert mixed.isfinite().all()
    assert mixed[:2].tolist() == mixed[4:].tolist() == [0, 0]


def test_bnpo_refuses_rewards_that_are_no_shares() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1 and got 2\.0"):
        bnpo(torch.tensor([2.0, 0.0]), torch.tensor([0, 0]))


def test_gigpo_compares_discounted_returns_of_equal_states() -> None:
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64)
    anchors = torch.tensor([[0, 1], [0, 0]])
    steps = gigpo_steps(rewards, torch.ones_like(rewards), anchors, gamma=0.5, std=True)
    returns = torch.tensor([0.5, 0.0, 0.0], dtype=F64)  # of the three turns that began in state 0
    expected = (returns - returns.mean()) / (returns.std() + 1e-6)
    assert torch.allclose(steps[[0, 1, 1], [0, 0, 1]], expected)
    assert steps[0, 1] == 0  # a state that was met once
    masked = gigpo_steps(rewards, torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=F64), anchors, gamma=0.5)
    assert masked[0, 1] == 0
    assert (masked == 0).all()  # without that turn nothing was ever earned
