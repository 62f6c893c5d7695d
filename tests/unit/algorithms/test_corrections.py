"""Corrections go with every loss: what they weigh, what they reject, and that they otherwise change nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roll_core.algorithms import POLICY_LOSSES, LossInputs, token_weights
from roll_core.algorithms.corrections import CorrectionSettings, corrected, correction_weights

torch.set_num_threads(1)
NAMES = sorted(POLICY_LOSSES)
ALL = ("token_weight", "token_veto", "sequence_band")
SINGLE = ("token_weight", "sequence_weight", "token_veto", "sequence_band")


def row(*w: float) -> tuple[Tensor, Tensor, Tensor]:
    """π_prox, π_behave and a mask of one row in which w is what is given, and a masked token that would spoil it."""
    prox = torch.tensor([[math.log(x) for x in w] + [0.0]], dtype=torch.float64)
    behave = torch.zeros_like(prox)
    behave[0, -1] = 50.0
    mask = torch.ones_like(prox)
    mask[0, -1] = 0
    return prox, behave, mask


def weights(settings: CorrectionSettings, *w: float) -> list[float]:
    found: list[float] = correction_weights(*row(*w), settings)[0].tolist()
    assert found[-1] == 1  # outside the mask
    return found[:-1]


def test_token_weights_are_truncated_one_by_one() -> None:
    assert weights(CorrectionSettings(("token_weight",), cap=2.0), 0.5, 3.0) == pytest.approx([0.5, 2.0])


def test_a_sequence_weight_is_the_truncated_product_on_every_token() -> None:
    chosen = CorrectionSettings(("sequence_weight",), cap=2.0)
    assert weights(chosen, 0.5, 3.0) == pytest.approx([1.5, 1.5])
    assert weights(chosen, 2.0, 3.0) == pytest.approx([2.0, 2.0])


def test_one_impossible_token_vetoes_its_row() -> None:
    chosen = CorrectionSettings(("token_veto",), veto=1e-3)
    assert weights(chosen, 1.0, 2e-3, 5.0) == [1, 1, 1]
    assert weights(chosen, 1.0, 5e-4, 5.0) == [0, 0, 0]


def test_the_band_looks_at_the_geometric_mean() -> None:
    chosen = CorrectionSettings(("sequence_band",), band=(0.9, 1.1))
    assert weights(chosen, 0.5, 2.0) == [1, 1]
    assert weights(chosen, 1.0, 1.3) == [0, 0]
    assert weights(chosen, 1.0, 0.7) == [0, 0]


def test_corrections_multiply() -> None:
    chosen = CorrectionSettings(("token_weight", "token_veto"), cap=2.0, veto=0.1)
    assert weights(chosen, 0.5, 3.0) == pytest.approx([0.5, 2.0])
    assert weights(chosen, 0.05, 3.0) == [0, 0]


@st.composite
def batches(draw: st.DrawFn) -> LossInputs:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    logp, prox, behave = (-2 * torch.rand(*shape, dtype=torch.float64, generator=g) for _ in range(3))
    mask = (torch.rand(*shape, generator=g) < 0.7).double()
    mask[0, 0] = 1
    return LossInputs(logp.requires_grad_(), prox, behave, torch.randn(*shape, dtype=torch.float64, generator=g), mask)


def value_and_gradient(loss: Tensor, x: LossInputs) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, x.logprobs_BT)[0]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(x=batches(), correction=st.sampled_from(SINGLE))
def test_where_engine_and_learner_agree_a_correction_changes_nothing(name: str, x: LossInputs, correction: str) -> None:
    agreed = dataclasses.replace(x, behaviour_logprobs_BT=x.prox_logprobs_BT)
    plain = POLICY_LOSSES[name]
    ours = corrected(plain, CorrectionSettings((correction,)))  # type: ignore[arg-type]
    assert ours.recompute_prox
    for one, other in zip(value_and_gradient(plain(agreed), x), value_and_gradient(ours(agreed), x), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=40)
@given(x=batches(), cap=st.sampled_from([0.5, 1.0, 2.0, math.inf]))
def test_ppo_with_token_weights_is_decoupled_ppo(x: LossInputs, cap: float) -> None:
    ours = corrected(POLICY_LOSSES["ppo"].with_options("token-mean"), CorrectionSettings(("token_weight",), cap=cap))
    theirs = POLICY_LOSSES["decoupled_ppo"].with_options(cap=cap)
    for one, other in zip(value_and_gradient(ours(x), x), value_and_gradient(theirs(x), x), strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(x=batches())
def test_a_rejected_row_has_no_gradient_and_keeps_its_place_in_the_mean(name: str, x: LossInputs) -> None:
    behave = x.behaviour_logprobs_BT.clone()
    behave[0] = x.prox_logprobs_BT[0] + 15.0
    x = dataclasses.replace(x, behaviour_logprobs_BT=behave)
    plain, ours = POLICY_LOSSES[name], corrected(POLICY_LOSSES[name], CorrectionSettings(("token_veto",)))
    _, grad = value_and_gradient(ours(x), x)
    assert (grad[0] == 0).all()
    _, everything = value_and_gradient(plain(shown(plain, x)), x)
    assert torch.allclose(grad[1:], everything[1:])


def shown(loss, x: LossInputs) -> LossInputs:
    """As a learner would show it to the plain loss."""
    return x if loss.recompute_prox else dataclasses.replace(x, prox_logprobs_BT=x.behaviour_logprobs_BT)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(x=batches())
def test_a_masked_token_changes_nothing_under_corrections_either(name: str, x: LossInputs) -> None:
    ours, outside = corrected(POLICY_LOSSES[name], CorrectionSettings(ALL)), x.mask_BT == 0
    expected = value_and_gradient(ours(x), x)
    changed = {
        f.name: getattr(x, f.name).detach().masked_fill(outside, math.nan)
        for f in dataclasses.fields(LossInputs)
        if f.name != "mask_BT"
    }
    changed["logprobs_BT"].requires_grad_()
    spoilt = dataclasses.replace(x, **changed)
    for one, other in zip(expected, value_and_gradient(ours(spoilt), spoilt), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("correction", SINGLE)
@settings(max_examples=40)
@given(x=batches())
def test_micro_batches_add_up_under_corrections(correction: str, x: LossInputs) -> None:
    ours = corrected(POLICY_LOSSES["dapo"], CorrectionSettings((correction,), band=(0.8, 1.2)))  # type: ignore[arg-type]
    weights_BT = token_weights(x.mask_BT, ours.aggregation)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(weights_BT)):
        part = LossInputs(*(getattr(x, f.name)[i : i + 1] for f in dataclasses.fields(LossInputs)))
        total = total + (ours.per_token(part, ours.options).loss_BT * weights_BT[i : i + 1]).sum()
    for one, other in zip(value_and_gradient(ours(x), x), value_and_gradient(total, x), strict=True):
        assert torch.allclose(one, other)


def test_no_correction_is_the_loss_itself() -> None:
    assert corrected(POLICY_LOSSES["tis"], CorrectionSettings()) is POLICY_LOSSES["tis"]
