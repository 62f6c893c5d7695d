"""AsyPPO's mathematics: golden values, what a partition and a mask must be, and what must change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roll_core.algorithms import gae
from roll_core.algorithms.credit import Credit, Evidence, transformed
from roll_core.algorithms.critics import (
    advantage_mask,
    agreement,
    disagreement_metrics,
    ensemble,
    entropy_filter,
    explained_variance,
    highest,
    lowest,
    partition,
    value_loss,
    with_bootstrap,
)

torch.set_num_threads(1)
shares = st.floats(0, 1, allow_subnormal=False)
seeds = st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def masked_values(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """x_BT with many ties, and a mask with at least one token."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    cells = rows * width
    x = draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells))
    mask = draw(st.lists(st.integers(0, 1), min_size=cells, max_size=cells))
    mask[draw(st.integers(0, cells - 1))] = 1
    return torch.tensor(x).double().view(rows, width), torch.tensor(mask).float().view(rows, width)


# --- golden values ---------------------------------------------------------------------------------------------------


def test_two_critics_have_the_mean_and_the_population_std_of_the_paper_s_example() -> None:
    values_MBT = torch.tensor([[[0.5, 0.4, 0.3]], [[0.7, 0.4, 0.1]]], dtype=torch.float64)
    found = ensemble(values_MBT)
    assert found.mean_BT.tolist()[0] == pytest.approx([0.6, 0.4, 0.2])
    assert found.std_BT.tolist()[0] == pytest.approx([0.1, 0.0, 0.1])
    assert found.std_BT[0, 1] == 0
    assert agreement(values_MBT, torch.ones(1, 3)) == pytest.approx(1.0), "both fall, one faster"


def test_gae_on_values_has_the_golden_values_and_lambda_one_gives_the_monte_carlo_return() -> None:
    rewards = torch.tensor([[0, 0, 1, 0], [0, 0, 0, -1.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.3, 0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1.0]], dtype=torch.float64)
    advantages = gae(rewards, values, mask, 1.0, 0.95)[0]
    golden = [[0.43675, 0.565, 0.7, 0], [-0.915075, -1.0685, -1.23, -1.4]]
    assert torch.allclose(advantages, torch.tensor(golden, dtype=torch.float64))
    monte_carlo = gae(rewards, torch.zeros_like(values), mask, 1.0, 1.0)[1]
    assert monte_carlo.tolist() == [[1, 1, 1, 0], [-1, -1, -1, -1]]
    assert torch.allclose(gae(rewards, values, mask, 1.0, 1.0)[1], monte_carlo)


def test_a_truncated_row_bootstraps_from_where_it_stopped_and_a_terminated_one_does_not() -> None:
    rewards = torch.tensor([[0, 0.5, 0, 0], [0, 0.5, 0, 0]], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0.0]], dtype=torch.float64)
    final = torch.tensor([0.8, 0.8], dtype=torch.float64)
    earned = with_bootstrap(rewards, mask, torch.tensor([True, False]), final, gamma=0.5)
    assert earned.tolist() == [[0, 0.5, 0.4, 0], [0, 0.5, 0, 0]]
    values = torch.tensor([[0, 0.3, 0.2, 0], [0, 0.3, 0.2, 0]], dtype=torch.float64)
    advantages = gae(earned, values, mask, 0.5, 0.9)[0]
    assert advantages[0, 2].item() == pytest.approx(0.5 * 0.8 - 0.2), "δ = r + γV(s_T) − V"
    assert advantages[1, 2].item() == pytest.approx(-0.2)
    assert rewards[0, 2] == 0, "the batch's own rewards are not touched"
    assert with_bootstrap(rewards, mask, None, final) is rewards


def test_a_row_without_a_response_cannot_bootstrap() -> None:
    rewards, mask = torch.zeros(2, 3), torch.tensor([[0, 0, 0], [0, 1, 0.0]])
    earned = with_bootstrap(rewards, mask, torch.tensor([True, True]), torch.tensor([9.0, 2.0]))
    assert earned.tolist() == [[0, 0, 0], [0, 2, 0]]


def test_value_clipping_takes_the_worse_of_the_new_value_and_the_near_one() -> None:
    old, returns = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    values = torch.tensor([0.1, 0.5, -0.5, 0.5], requires_grad=True)
    loss, clipped = value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.81, 0.64, 2.25, 2.25])
    assert clipped.tolist() == [False, True, False, False]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.8, 0.0, -3.0, 3.0]), "far towards the return: no gradient"
    plain, never = value_loss(values, old, returns, None)
    assert plain.tolist() == pytest.approx([0.81, 0.25, 2.25, 2.25])
    assert not never.any()


def test_explained_variance_is_one_for_the_truth_and_zero_for_a_constant() -> None:
    returns, mask = torch.tensor([[0.0, 1.0, 1.0, 7.0]]), torch.tensor([[1, 1, 1, 0.0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0, "returns that do not vary"


# --- the partition ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-2, 6), min_size=1, max_size=60), st.integers(1, 5), seeds)
def test_a_partition_gives_every_critic_its_part_of_every_prompt(groups: list[int], critics: int, seed: int) -> None:
    group_B = torch.tensor(groups)
    owner_B = partition(group_B, critics, generator(seed))
    assert owner_B.shape == group_B.shape
    assert set(owner_B.tolist()) <= set(range(critics))
    parts = [(group_B == g, int((group_B == g).sum())) for g in set(groups)]
    for chosen, size in [*parts, (torch.ones_like(group_B, dtype=torch.bool), len(groups))]:
        counts = torch.bincount(owner_B[chosen], minlength=critics)
        assert counts.sum() == size, "disjoint, and all of them"
        assert counts.max() - counts.min() <= 1, "also over the whole batch"
        assert size < critics or counts.min() >= 1, "no critic misses a prompt that has enough responses"
    assert torch.equal(owner_B, partition(group_B, critics, generator(seed))), "the same draw, the same shares"


def test_who_learns_from_what_changes_from_step_to_step() -> None:
    group_B = torch.arange(4).repeat_interleave(8)
    drawn = {tuple(partition(group_B, 2, generator(seed)).tolist()) for seed in range(20)}
    assert len(drawn) == 20
    one_more = {int(partition(torch.zeros(3), 2, generator(seed)).sum()) for seed in range(20)}
    assert one_more == {1, 2}, "neither critic always gets the odd one"


def test_no_critic_is_an_error() -> None:
    with pytest.raises(ValueError, match="critics=0"):
        partition(torch.zeros(3), 0, generator(0))


# --- the ensemble ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_equal_critics_never_disagree(critics: int, seed: int, dtype: torch.dtype) -> None:
    values_BT = (torch.randn(3, 7, generator=generator(seed)) * 1e3).to(dtype)
    found = ensemble(values_BT.expand(critics, 3, 7))
    assert torch.equal(found.std_BT, torch.zeros_like(values_BT))
    assert torch.equal(found.mean_BT, values_BT)


@given(st.integers(1, 5), seeds)
def test_mean_and_std_are_those_of_the_definition_in_any_order_of_critics(critics: int, seed: int) -> None:
    values_MBT = torch.randn(critics, 3, 4, generator=generator(seed), dtype=torch.float64)
    found, other = ensemble(values_MBT), ensemble(values_MBT.flip(0))
    assert torch.allclose(found.mean_BT, values_MBT.mean(0))
    assert torch.allclose(found.std_BT, values_MBT.std(0, correction=0))
    assert torch.allclose(found.std_BT, other.std_BT)
    assert torch.allclose(ensemble(values_MBT + 5).std_BT, found.std_BT), "a common error is no disagreement"


def test_agreement_is_the_mean_correlation_of_pairs() -> None:
    mask_BT = torch.ones(1, 3)
    up, down, flat = torch.tensor([[1.0, 2, 3]]), torch.tensor([[3.0, 2, 1]]), torch.ones(1, 3)
    assert agreement(torch.stack((up, 5 * up - 2)), mask_BT) == pytest.approx(1)
    assert agreement(torch.stack((up, down)), mask_BT) == pytest.approx(-1)
    assert agreement(torch.stack((up, up, down)), mask_BT) == pytest.approx(-1 / 3)
    assert agreement(torch.stack((up, flat)), mask_BT) == 0
    assert agreement(up.unsqueeze(0), mask_BT) == 0


def test_the_metrics_tell_what_the_masks_take() -> None:
    values_MBT = torch.stack((torch.zeros(1, 10), torch.arange(10.0).view(1, 10) * 2))
    found = disagreement_metrics(values_MBT, torch.ones(1, 10), 0.2, 0.3)
    assert found["critic/sigma_mean"] == found["critic/value_mean"] == pytest.approx(4.5)
    assert (found["critic/sigma_low"], found["critic/sigma_high"]) == (1, 7)
    assert (found["critic/masked_share"], found["critic/filtered_share"]) == pytest.approx((0.2, 0.3))


# --- masks -----------------------------------------------------------------------------------------------------------


@given(masked_values(), shares)
def test_a_mask_takes_exactly_its_share_of_the_batch_and_the_first_of_equals(data, share: float) -> None:
    x_BT, mask_BT = data
    inside = [(x_BT[b, t].item(), b, t) for b in range(len(x_BT)) for t in range(x_BT.shape[1]) if mask_BT[b, t]]
    count = math.floor(share * len(inside) + 1e-9)
    smallest = {(b, t) for _, b, t in sorted(inside)[:count]}
    largest = {(b, t) for _, b, t in sorted(inside, key=lambda c: (-c[0], c[1], c[2]))[:count]}
    assert {tuple(c) for c in lowest(x_BT, mask_BT, share).nonzero().tolist()} == smallest
    assert {tuple(c) for c in highest(x_BT, mask_BT, share).nonzero().tolist()} == largest


@given(st.integers(0, 100), st.integers(1, 400))
def test_a_share_in_percent_is_not_lost_to_rounding(percent: int, tokens: int) -> None:
    taken = lowest(torch.zeros(1, tokens), torch.ones(1, tokens), percent / 100)
    assert int(taken.sum()) == percent * tokens // 100


@given(seeds, shares)
@settings(max_examples=50)
def test_without_ties_the_order_of_the_rows_does_not_matter(seed: int, share: float) -> None:
    x_BT = torch.randperm(20, generator=generator(seed)).double().view(4, 5)
    mask_BT = (torch.rand(4, 5, generator=generator(seed)) < 0.7).float()
    order = torch.randperm(4, generator=generator(seed + 1))
    assert torch.equal(lowest(x_BT, mask_BT, share)[order], lowest(x_BT[order], mask_BT[order], share))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        lowest(torch.zeros(1, 2), torch.ones(1, 2), share)


def credit_and_evidence(seed: int, **values: Tensor) -> tuple[Credit, Evidence]:
    mask_BT = (torch.rand(4, 6, generator=generator(seed)) < 0.7).float()
    advantages_BT = torch.randn(4, 6, generator=generator(seed)) * mask_BT
    std_BT = torch.rand(4, 6, generator=generator(seed + 1))
    return Credit(advantages_BT, mask_BT.clone()), Evidence(mask_BT, value_std_BT=std_BT, **values)


@given(seeds)
def test_shares_of_zero_give_back_the_plain_credit(seed: int) -> None:
    credit, evidence = credit_and_evidence(seed)
    shaped = transformed(credit, evidence, [advantage_mask(0.0), entropy_filter(0.0)])
    assert torch.equal(shaped.advantages_BT, credit.advantages_BT)
    assert torch.equal(shaped.entropy_weight_BT, credit.entropy_weight_BT)


@given(seeds, shares, shares)
def test_each_mask_touches_its_own_half_and_the_order_does_not_matter(seed: int, low: float, high: float) -> None:
    credit, evidence = credit_and_evidence(seed)
    assert evidence.value_std_BT is not None
    masked = advantage_mask(low)(credit, evidence)
    filtered = entropy_filter(high)(credit, evidence)
    agreed = lowest(evidence.value_std_BT, evidence.mask_BT, low)
    unclear = highest(evidence.value_std_BT, evidence.mask_BT, high)
    assert torch.equal(masked.advantages_BT, credit.advantages_BT * ~agreed)
    assert masked.entropy_weight_BT is credit.entropy_weight_BT
    assert torch.equal(filtered.entropy_weight_BT, credit.entropy_weight_BT * ~unclear)
    assert filtered.advantages_BT is credit.advantages_BT
    one, other = [advantage_mask(low), entropy_filter(high)], [entropy_filter(high), advantage_mask(low)]
    left, right = transformed(credit, evidence, one), transformed(credit, evidence, other)
    assert torch.equal(left.advantages_BT, right.advantages_BT)
    assert torch.equal(left.entropy_weight_BT, right.entropy_weight_BT)


@pytest.mark.parametrize("make", [advantage_mask, entropy_filter])
def test_masks_without_critics_say_what_is_missing(make) -> None:
    credit, _ = credit_and_evidence(0)
    with pytest.raises(ValueError, match=r"critic\.count to 2"):
        make(0.2)(credit, Evidence(torch.ones(4, 6)))
