"""Policy losses: published values and gradients, and what every one of them must obey."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roll_core.algorithms import ADVANTAGES as ALL_ADVANTAGES
from roll_core.algorithms import POLICY_LOSSES, Aggregation, LossInputs, aggregate, token_weights
from roll_core.algorithms.corrections import Correction, CorrectionSettings, corrected
from roll_core.algorithms.divergence import KLEstimator
from roll_core.config import algorithm as config
from roll_core.config.algorithm import Algorithm

torch.set_num_threads(1)

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
    "gspo": (-0.210579, [[-0.1535, -0.1535, -0.1535, 0], [0, 0, 0, 0]]),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_value_and_gradient_are_the_published_ones(name: str) -> None:
    value, gradient = GOLDEN[name]
    inputs = golden_inputs()
    loss = POLICY_LOSSES[name](inputs)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert inputs.logprobs_BT.grad is not None
    assert torch.allclose(inputs.logprobs_BT.grad, torch.tensor(gradient, dtype=torch.float64), atol=6e-5)


def term(name: str, theta: float, prox: float, behave: float, a: float) -> tuple[float, float]:
    """Loss of one token and its derivative by log π_θ, written out; for losses without published values."""
    r, logp = theta / prox, math.log(theta)
    if name in {"bnpo", "reinforce_pp"}:
        inside = 0.8 < r < 1.2 or (r <= 0.8 and a > 0) or (r >= 1.2 and a < 0)
        return max(-r * a, -min(max(r, 0.8), 1.2) * a), -r * a if inside else 0.0
    if name == "rloo":
        return -a * logp, -a
    if name == "kimi":
        return -a * logp + 0.05 * math.log(r) ** 2, -a + 0.1 * math.log(r)
    weight = 2.0 if a > 0 else 0.5 * min(theta / behave, 1.0)
    return -weight * a * logp, -weight * a


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(GOLDEN)))
def test_value_and_gradient_are_those_of_the_formula_token_by_token(name: str) -> None:
    inputs = golden_inputs()
    changes = {"weight_positive": 2.0, "weight_negative": 0.5} if name == "weighted_topr" else {}
    loss = POLICY_LOSSES[name].with_options(**changes)(inputs)
    loss.backward()
    per_row = name == "rloo"
    weights = [1 / 2 if per_row else 1 / 7] * 7
    places = [(row, t) for row in range(2) for t in range(4) if MASK[row, t]]
    terms = [term(name, *(x[at].item() for x in (THETA, PROX, BEHAVE, ADVANTAGES))) for at in places]
    assert loss.item() == pytest.approx(sum(w * value for w, (value, _) in zip(weights, terms, strict=True)))
    assert inputs.logprobs_BT.grad is not None
    for at, weight, (_, slope) in zip(places, weights, terms, strict=True):
        assert inputs.logprobs_BT.grad[at].item() == pytest.approx(weight * slope), at
    assert inputs.logprobs_BT.grad[0, 3] == 0


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
@settings(max_examples=40)
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
@settings(max_examples=40)
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
@settings(max_examples=40)
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


def test_weighted_topr_at_one_is_topr() -> None:
    x = golden_inputs()
    assert torch.equal(POLICY_LOSSES["weighted_topr"](x), POLICY_LOSSES["topr"](x))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(inputs=batches(), order=st.randoms(use_true_random=False), padding=st.integers(0, 5))
def test_packing_rows_otherwise_changes_nothing(
    name: str, inputs: LossInputs, order: random.Random, padding: int
) -> None:
    """Other order of rows, other padding: the same loss, and each token the same gradient."""
    loss = POLICY_LOSSES[name].with_options(length=7)  # the padded length is the default divisor of constant-length
    rows = list(range(len(inputs.mask_BT)))
    order.shuffle(rows)
    packed = LossInputs(
        *(torch.nn.functional.pad(getattr(inputs, f.name)[rows], (0, padding)) for f in dataclasses.fields(LossInputs))
    )
    whole, other = loss(inputs), loss(packed)
    assert torch.allclose(whole, other, atol=1e-12)
    grads = [torch.autograd.grad(value, inputs.logprobs_BT)[0] for value in (whole, other)]
    assert torch.allclose(*grads, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(inputs=batches())
def test_the_gradient_flows_through_the_trained_log_probs_alone(name: str, inputs: LossInputs) -> None:
    fields = ("prox_logprobs_BT", "behaviour_logprobs_BT", "advantages_BT")
    others = {f: getattr(inputs, f).clone().requires_grad_() for f in fields}
    x = dataclasses.replace(inputs, **others)
    chosen = CorrectionSettings(("token_weight", "token_veto", "sequence_band"), band=(0.1, 10.0))
    for loss in (POLICY_LOSSES[name], corrected(POLICY_LOSSES[name], chosen)):
        wanted = [inputs.logprobs_BT, *others.values()]
        first, *rest = torch.autograd.grad(loss(x), wanted, allow_unused=True)
        assert first is not None
        assert rest == [None, None, None]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(
    values=st.lists(st.sampled_from([0.0, -1e-30, -0.7, -20.0, -103.0, -1e4]), min_size=12, max_size=12),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_extreme_inputs_give_finite_losses_and_gradients(
    name: str, values: list[float], scale: float, dtype: torch.dtype
) -> None:
    logp, prox, behave = torch.tensor(values, dtype=dtype).view(3, 2, 2)
    advantages = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype) * scale
    x = LossInputs(logp.requires_grad_(), prox, behave, advantages, torch.ones(2, 2, dtype=dtype))
    loss = POLICY_LOSSES[name](x)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, x.logprobs_BT)[0]).all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(inputs=batches())
def test_a_credit_factor_of_one_is_the_plain_loss_and_any_other_scales_its_token_only(
    name: str, inputs: LossInputs
) -> None:
    plain, grad = gradient(name, inputs)
    factor = torch.ones_like(inputs.advantages_BT)
    same = gradient(name, dataclasses.replace(inputs, advantages_BT=inputs.advantages_BT * factor))
    assert torch.equal(plain, same[0])
    assert torch.equal(grad, same[1])
    factor[0, 0] = 1.5  # always in the mask
    _, shaped = gradient(name, dataclasses.replace(inputs, advantages_BT=inputs.advantages_BT * factor))
    others = torch.ones_like(factor, dtype=torch.bool)
    others[0, 0] = False
    assert torch.equal(shaped[others], grad[others])


@pytest.mark.parametrize("how", get_args(Aggregation))
def test_every_aggregation_is_the_mean_that_its_name_says(how: Aggregation) -> None:
    loss = torch.arange(8, dtype=torch.float64).view(2, 4)
    expected = {
        "token-mean": (0 + 1 + 2 + 4 + 5 + 6 + 7) / 7,
        "seq-mean-token-mean": (3 / 3 + 22 / 4) / 2,
        "seq-mean-token-sum": (3 + 22) / 2,
        "constant-length": (3 + 22) / (2 * 10),
    }
    assert aggregate(loss, MASK, how, 10).item() == pytest.approx(expected[how])
    empty = torch.cat((MASK, torch.zeros(1, 4, dtype=torch.float64)))
    padded = torch.cat((loss, torch.full((1, 4), math.nan, dtype=torch.float64)))
    assert aggregate(padded, empty, how, 10).item() == pytest.approx(expected[how])  # a row without a token


def test_a_recipe_may_name_every_loss_every_advantage_and_every_aggregation() -> None:
    def names(key: str) -> set[str]:
        annotation = Algorithm.model_fields[key].annotation
        return {n for part in (get_args(annotation) or (annotation,)) for n in (get_args(part) or (part,)) if n}

    assert names("loss") == set(NAMES)
    assert names("advantage") == {*ALL_ADVANTAGES, "gae", "gigpo"}
    assert names("aggregation") - {type(None)} == set(get_args(Aggregation))
    assert set(get_args(config.Correction)) == set(get_args(Correction))
    assert set(get_args(config.KLEstimator)) == set(get_args(KLEstimator))
