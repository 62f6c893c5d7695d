"""Policy losses: published values and gradients, and what every one of them must obey."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roll_core.algorithms import POLICY_LOSSES, LossInputs, aggregate, token_weights

NAMES = sorted(POLICY_LOSSES)
THETA = torch.tensor([[0.5, 0.25, 0.1, 0.9], [0.6, 0.05, 0.3, 0.8]], dtype=torch.float64)
PROX = torch.tensor([[0.4, 0.4, 0.1, 0.9], [0.5, 0.1, 0.3, 0.5]], dtype=torch.float64)
BEHAVE = torch.tensor([[0.5, 0.3, 0.2, 0.9], [0.4, 0.1, 0.2, 0.5]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0] * 4, [-0.5] * 4], dtype=torch.float64)


def golden_inputs() -> LossInputs:
    return LossInputs(THETA.log().requires_grad_(), PROX.log(), BEHAVE.log(), ADVANTAGES, MASK)


GOLDEN = {
    "ppo": (-0.183333, [[0, -0.1042, -0.1667, 0], [0.075, 0, 0.0625, 0.1]]),
    "grpo": (-0.183333, [[0, -0.1042, -0.1667, 0], [0.075, 0, 0.0625, 0.1]]),
    "dapo": (-0.082143, [[-0.1786, -0.0893, -0.1429, 0], [0.0857, 0, 0.0714, 0.1143]]),
    "dr_grpo": (-0.065625, [[0, -0.0781, -0.125, 0], [0.075, 0, 0.0625, 0.1]]),
    "decoupled_ppo": (0.058095, [[0, -0.119, -0.0714, 0], [0.1071, 0, 0.1071, 0.1143]]),
    "tis": (0.183112, [[-0.1429, -0.119, -0.0714, 0], [0.0714, 0.0357, 0.0714, 0.0714]]),
    "cispo": (0.286105, [[-0.1714, -0.1143, -0.1429, 0], [0.0857, 0.0571, 0.0714, 0.0857]]),
    "topr": (0.380589, [[-0.1429, -0.1429, -0.1429, 0], [0.0714, 0.0357, 0.0714, 0.0714]]),
}


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_the_published_ones(name: str) -> None:
    value, gradient = GOLDEN[name]
    inputs = golden_inputs()
    loss = POLICY_LOSSES[name](inputs)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert inputs.logprobs_BT.grad is not None
    assert torch.allclose(inputs.logprobs_BT.grad, torch.tensor(gradient, dtype=torch.float64), atol=6e-5)


@st.composite
def batches(draw: st.DrawFn) -> LossInputs:
    rows, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def logprobs() -> Tensor:
        return -torch.rand(rows, tokens, dtype=torch.float64, generator=generator) * 2

    mask = (torch.rand(rows, tokens, generator=generator) < 0.7).double()
    mask[0, 0] = 1
    advantages = torch.randn(rows, tokens, dtype=torch.float64, generator=generator)
    return LossInputs(logprobs().requires_grad_(), logprobs(), logprobs(), advantages, mask)


def gradient(name: str, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    loss = POLICY_LOSSES[name](inputs)
    (grad,) = torch.autograd.grad(loss, inputs.logprobs_BT)
    return loss.detach(), grad


@pytest.mark.parametrize("name", NAMES)
@given(inputs=batches())
def test_on_policy_data_gives_ratio_one_an_inert_clip_and_the_plain_policy_gradient(
    name: str, inputs: LossInputs
) -> None:
    same = inputs.logprobs_BT.detach().clone()
    x = dataclasses.replace(inputs, prox_logprobs_BT=same, behaviour_logprobs_BT=same)
    loss = POLICY_LOSSES[name]
    token = loss.per_token(x, loss.options)
    assert torch.equal(token.ratio_BT, torch.ones_like(same))
    assert not token.clipped_BT.any()
    _, grad = gradient(name, x)
    weights = token_weights(x.mask_BT, loss.aggregation, loss.options.length)
    assert torch.allclose(grad, -weights * x.advantages_BT * x.mask_BT)


@pytest.mark.parametrize("name", NAMES)
@given(inputs=batches())
def test_a_masked_token_changes_nothing_whatever_it_holds(name: str, inputs: LossInputs) -> None:
    expected = gradient(name, inputs)
    outside = inputs.mask_BT == 0
    junk = iter([math.nan, math.inf, -math.inf, 1e30])
    changed = {
        f: getattr(inputs, f).detach().masked_fill(outside, next(junk))
        for f in ("logprobs_BT", "prox_logprobs_BT", "behaviour_logprobs_BT", "advantages_BT")
    }
    changed["logprobs_BT"].requires_grad_()
    loss, grad = gradient(name, dataclasses.replace(inputs, **changed))
    assert torch.equal(loss, expected[0])
    assert torch.equal(grad, expected[1])


@pytest.mark.parametrize("name", NAMES)
@given(inputs=batches())
def test_any_split_into_micro_batches_adds_up_to_the_whole(name: str, inputs: LossInputs) -> None:
    whole, grad = gradient(name, inputs)
    loss = POLICY_LOSSES[name]
    weights_BT = token_weights(inputs.mask_BT, loss.aggregation, loss.options.length)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(weights_BT)):
        part = LossInputs(*(getattr(inputs, f.name)[row : row + 1] for f in dataclasses.fields(LossInputs)))
        total = total + (loss.per_token(part, loss.options).loss_BT * weights_BT[row : row + 1]).sum()
    (split_grad,) = torch.autograd.grad(total, inputs.logprobs_BT)
    assert torch.allclose(total.detach(), whole)
    assert torch.allclose(split_grad, grad)


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    x = LossInputs((one * 10).log().requires_grad_(), one.log(), one.log(), -one, one)
    assert POLICY_LOSSES["ppo"](x).item() == pytest.approx(10)
    bounded = POLICY_LOSSES["ppo"].with_options(dual_clip=3.0)
    loss = bounded(x)
    assert loss.item() == pytest.approx(3)
    assert torch.autograd.grad(loss, x.logprobs_BT)[0].item() == 0


def test_the_cap_bounds_the_importance_weight() -> None:
    x = golden_inputs()
    capped = POLICY_LOSSES["decoupled_ppo"].with_options(cap=1.0)
    weight = (PROX / BEHAVE).clamp(max=1.0)
    inner = POLICY_LOSSES["ppo"]
    expected = aggregate(inner.per_token(x, inner.options).loss_BT * weight, MASK, "token-mean")
    assert torch.allclose(capped(x), expected)
    with pytest.raises(TypeError):
        capped.with_options(epsilon=0.1)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="sum"):
        aggregate(MASK, MASK, "sum")  # type: ignore[arg-type]
