"""Policy losses by name. Each is a function of log-probs and advantages, per token, to be minimised.

Invariants: the gradient flows through ``logprobs_BT`` alone; outside the mask a loss is 0 and a ratio is 1, whatever
the inputs hold there; on-policy data gives ratio 1 and an inert clip. Behaviour log-probs are the engine's: nothing
here or in a learner recomputes them.

Symbols: π_θ trained, π_prox at the start of the update, π_behave as sampled; r = π_θ/π_prox, w = π_prox/π_behave,
ρ = π_θ/π_behave, A advantage, sg() stop-gradient. Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roll_core.algorithms.masked import Aggregation, aggregate


@dataclass(frozen=True, slots=True)
class LossInputs:
    """All BT. ``logprobs_BT`` carries the gradient. Values outside the mask are ignored, whatever they are."""

    logprobs_BT: Tensor
    prox_logprobs_BT: Tensor
    behaviour_logprobs_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor


@dataclass(frozen=True, slots=True)
class LossOptions:
    """``clip_low``/``clip_high``: the ratio stays within [1 − clip_low, 1 + clip_high]. ``dual_clip``: bound c of the
    loss for A < 0 (arXiv 1912.09729), off at None. ``cap``: upper bound C of an importance weight.
    ``length``: the divisor of constant-length aggregation, the batch's T at None."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    cap: float = math.inf
    length: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """``loss_BT`` per token, 0 outside the mask; ``ratio_BT`` the ratio that the clip looks at, 1 outside the mask;
    ``clipped_BT`` (bool) where the clip or the cap took effect."""

    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss with its defaults. ``recompute_prox``: whether π_prox is the learner's policy at the start of the update
    (its definition needs both π_prox and π_behave) or, as in PPO's own words, the policy that sampled."""

    name: str
    per_token: Callable[[LossInputs, LossOptions], TokenLoss]
    aggregation: Aggregation
    options: LossOptions = LossOptions()
    recompute_prox: bool = False

    def with_options(self, aggregation: Aggregation | None = None, **changes: float | int | None) -> PolicyLoss:
        """The same loss under other :class:`LossOptions`; unknown names raise TypeError."""
        options = replace(self.options, **changes)  # type: ignore[arg-type]
        return replace(self, options=options, aggregation=aggregation or self.aggregation)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of a whole batch as one number."""
        loss_BT = self.per_token(inputs, self.options).loss_BT
        return aggregate(loss_BT, inputs.mask_BT, self.aggregation, self.options.length)


def _ratio(numerator_BT: Tensor, denominator_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """exp(difference), exactly 1 outside the mask so that padding can never overflow into the gradient."""
    inside = mask_BT.bool()
    zero = torch.zeros((), dtype=numerator_BT.dtype, device=numerator_BT.device)
    return (torch.where(inside, numerator_BT, zero) - torch.where(inside, denominator_BT, zero)).exp()


def _clean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT.bool(), x_BT, torch.zeros((), dtype=x_BT.dtype, device=x_BT.device))


def ppo(x: LossInputs, o: LossOptions) -> TokenLoss:
    """max(−rA, −clip(r, 1−ε_low, 1+ε_high)A); with dual clip min(that, −cA) where A < 0. PPO, arXiv 1707.06347 eq. 7;
    GRPO, arXiv 2402.03300; asymmetric ε of DAPO, arXiv 2503.14476."""
    advantages_BT = _clean(x.advantages_BT, x.mask_BT)
    ratio_BT = _ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT)
    plain_BT = -ratio_BT * advantages_BT
    bounded_BT = -ratio_BT.clamp(1.0 - o.clip_low, 1.0 + o.clip_high) * advantages_BT
    loss_BT = torch.maximum(plain_BT, bounded_BT)
    clipped_BT = bounded_BT > plain_BT
    if o.dual_clip is not None:
        ceiling_BT = -o.dual_clip * advantages_BT
        over_BT = (advantages_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT = torch.where(over_BT, ceiling_BT, loss_BT)
        clipped_BT = clipped_BT | over_BT
    return TokenLoss(loss_BT, ratio_BT, clipped_BT)


def decoupled_ppo(x: LossInputs, o: LossOptions) -> TokenLoss:
    """sg(min(w, C)) · PPO(r). The trust region is around π_prox, the importance weight corrects for π_behave.
    Decoupled PPO, arXiv 2110.00641; AReaL, arXiv 2505.24298 eq. 5. ``cap`` C is our addition, off by default."""
    inner = ppo(x, o)
    weight_BT = _ratio(x.prox_logprobs_BT, x.behaviour_logprobs_BT, x.mask_BT).clamp(max=o.cap).detach()
    return TokenLoss(weight_BT * inner.loss_BT, inner.ratio_BT, inner.clipped_BT)


def tis(x: LossInputs, o: LossOptions) -> TokenLoss:
    """−sg(clip(ρ, 0, C)) · A · log π_θ. Truncated importance sampling; IMPALA, arXiv 1802.01561 (ρ̄)."""
    ratio_BT = _ratio(x.logprobs_BT, x.behaviour_logprobs_BT, x.mask_BT)
    weighted_BT = ratio_BT.clamp(max=o.cap).detach() * _clean(x.advantages_BT, x.mask_BT)
    return TokenLoss(-weighted_BT * _clean(x.logprobs_BT, x.mask_BT), ratio_BT, ratio_BT > o.cap)


def cispo(x: LossInputs, o: LossOptions) -> TokenLoss:
    """−sg(clip(r, 1−ε_low, 1+ε_high)) · A · log π_θ: the weight is clipped, the gradient never cut. MiniMax-M1, arXiv
    2506.13585 eq. 4."""
    ratio_BT = _ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT)
    bounded_BT = ratio_BT.clamp(1.0 - o.clip_low, 1.0 + o.clip_high).detach()
    loss_BT = -bounded_BT * _clean(x.advantages_BT, x.mask_BT) * _clean(x.logprobs_BT, x.mask_BT)
    return TokenLoss(loss_BT, ratio_BT, bounded_BT != ratio_BT)


def topr(x: LossInputs, o: LossOptions) -> TokenLoss:
    """A > 0: −A log π_θ; A ≤ 0: −sg(clip(ρ, 0, C)) · A · log π_θ, C = 1. TOPR, arXiv 2503.14286, which speaks of the
    reward's sign; with a baseline subtracted that is the advantage's [ours]."""
    advantages_BT = _clean(x.advantages_BT, x.mask_BT)
    ratio_BT = _ratio(x.logprobs_BT, x.behaviour_logprobs_BT, x.mask_BT)
    negative_BT = advantages_BT <= 0
    weight_BT = torch.where(negative_BT, ratio_BT.clamp(max=o.cap).detach(), torch.ones_like(ratio_BT))
    loss_BT = -weight_BT * advantages_BT * _clean(x.logprobs_BT, x.mask_BT)
    return TokenLoss(loss_BT, ratio_BT, negative_BT & (ratio_BT > o.cap))


POLICY_LOSSES: dict[str, PolicyLoss] = {
    loss.name: loss
    for loss in (
        PolicyLoss("ppo", ppo, "seq-mean-token-mean"),
        PolicyLoss("grpo", ppo, "seq-mean-token-mean"),
        PolicyLoss("dapo", ppo, "token-mean", LossOptions(clip_high=0.28)),
        PolicyLoss("dr_grpo", ppo, "constant-length"),
        PolicyLoss("decoupled_ppo", decoupled_ppo, "token-mean", recompute_prox=True),
        PolicyLoss("tis", tis, "token-mean", LossOptions(cap=1.0)),
        PolicyLoss("cispo", cispo, "token-mean"),
        PolicyLoss("topr", topr, "token-mean", LossOptions(cap=1.0)),
    )
}
"""By name, as recipes say it."""
