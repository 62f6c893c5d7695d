"""Policy losses by name. Each is a function of log-probs and advantages, per token, to be minimised.

Invariants: the gradient flows through ``logprobs_BT`` alone; outside the mask a loss is 0 and a ratio is 1, whatever
the inputs hold there; on-policy data gives ratio 1 and an inert clip; finite inputs give a finite loss and gradient.
Behaviour log-probs are the engine's: nothing here or in a learner recomputes them.

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

LOG_RATIO_LIMIT = 20.0
"""Ratios are taken within e^±20 (5e8): far beyond any that still says something, and finite in float32."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """All BT. ``logprobs_BT`` carries the gradient, the others lose theirs here. Values outside the mask are ignored,
    whatever they are."""

    logprobs_BT: Tensor
    prox_logprobs_BT: Tensor
    behaviour_logprobs_BT: Tensor
    advantages_BT: Tensor
    mask_BT: Tensor

    def __post_init__(self) -> None:
        for name in ("prox_logprobs_BT", "behaviour_logprobs_BT", "advantages_BT"):
            object.__setattr__(self, name, getattr(self, name).detach())


@dataclass(frozen=True, slots=True)
class LossOptions:
    """``clip_low``/``clip_high``: the ratio stays within [1 − clip_low, 1 + clip_high]. ``dual_clip``: bound c of the
    loss for A < 0 (arXiv 1912.09729), off at None. ``cap``: upper bound C of an importance weight.
    ``length``: the divisor of constant-length aggregation, the batch's T at None. ``weight_positive``,
    ``weight_negative``: w⁺ and w⁻ of weighted TOPR. ``tau``: τ of Kimi."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    cap: float = math.inf
    length: int | None = None
    weight_positive: float = 1.0
    weight_negative: float = 1.0
    tau: float = 0.1


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """``loss_BT`` per token, 0 outside the mask; ``ratio_BT`` the ratio that the clip looks at, 1 outside the mask;
    ``clipped_BT`` (bool) where the clip or the cap took effect; ``weight_BT`` what a correction multiplied the loss by,
    None without one."""

    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_BT: Tensor
    weight_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss with its defaults. ``recompute_prox``: whether π_prox is the learner's policy at the start of the update
    (its definition needs both π_prox and π_behave) or, as in PPO's own words, the policy that sampled.
    ``ties``: it has a gradient where there is no advantage."""

    name: str
    per_token: Callable[[LossInputs, LossOptions], TokenLoss]
    aggregation: Aggregation
    options: LossOptions = LossOptions()
    recompute_prox: bool = False
    ties: bool = False

    def with_options(self, aggregation: Aggregation | None = None, **changes: float | int | None) -> PolicyLoss:
        """The same loss under other :class:`LossOptions`; unknown names raise TypeError."""
        options = replace(self.options, **changes)  # type: ignore[arg-type]
        return replace(self, options=options, aggregation=aggregation or self.aggregation)

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The loss of a whole batch as one number."""
        loss_BT = self.per_token(inputs, self.options).loss_BT
        return aggregate(loss_BT, inputs.mask_BT, self.aggregation, self.options.length)


def log_ratio(numerator_BT: Tensor, denominator_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The difference within ±:data:`LOG_RATIO_LIMIT`, exactly 0 outside the mask: padding cannot reach the gradient."""
    difference_BT = _clean(numerator_BT, mask_BT) - _clean(denominator_BT, mask_BT)
    return difference_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _ratio(numerator_BT: Tensor, denominator_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return log_ratio(numerator_BT, denominator_BT, mask_BT).exp()


def _clean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT.bool(), x_BT, torch.zeros((), dtype=x_BT.dtype, device=x_BT.device))


def ppo(x: LossInputs, o: LossOptions) -> TokenLoss:
    """max(−rA, −clip(r, 1−ε_low, 1+ε_high)A); with dual clip min(that, −cA) where A < 0. PPO, arXiv 1707.06347 eq. 7;
    GRPO, arXiv 2402.03300; asymmetric ε of DAPO, arXiv 2503.14476; dual clip, arXiv 1912.09729 eq. 5."""
    return _clipped(_ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT), x, o)


def _clipped(ratio_BT: Tensor, x: LossInputs, o: LossOptions) -> TokenLoss:
    """PPO's objective on a given ratio."""
    advantages_BT = _clean(x.advantages_BT, x.mask_BT)
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


def gspo(x: LossInputs, o: LossOptions) -> TokenLoss:
    """PPO's objective on s = exp(mean_t log r), one ratio for the whole response. GSPO, arXiv 2507.18071 eq. 5 to 7.

    In the token form of eq. 13, s_t = sg(s) · π_θ/sg(π_θ): where a response has one advantage, value and gradient are
    those of the sequence form, and where credit differs by token each keeps its own.
    """
    log_BT = log_ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT)
    log_s_B1 = log_BT.sum(1, keepdim=True) / x.mask_BT.sum(1, keepdim=True).clamp(min=1)
    own_BT = _clean(x.logprobs_BT, x.mask_BT)
    ratio_BT = (_clean(log_s_B1.detach().expand_as(own_BT), x.mask_BT) + own_BT - own_BT.detach()).exp()
    return _clipped(ratio_BT, x, o)


def reinforce(x: LossInputs, o: LossOptions) -> TokenLoss:
    """−A · log π_θ, the plain policy gradient; RLOO, arXiv 2402.14740 eq. 7 with its advantage. Corrects for nothing:
    on data that other weights sampled, add a correction."""
    loss_BT = -_clean(x.advantages_BT, x.mask_BT) * _clean(x.logprobs_BT, x.mask_BT)
    ratio_BT = _ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT)
    return TokenLoss(loss_BT, ratio_BT, torch.zeros_like(ratio_BT, dtype=torch.bool))


def kimi(x: LossInputs, o: LossOptions) -> TokenLoss:
    """−(A log π_θ − τ/2 · log² r): a squared tie to where the update began instead of a clip. Kimi k1.5, arXiv
    2501.12599 eq. 3, per token [ours]."""
    log_BT = log_ratio(x.logprobs_BT, x.prox_logprobs_BT, x.mask_BT)
    inner = reinforce(x, o)
    return TokenLoss(inner.loss_BT + 0.5 * o.tau * log_BT.square(), inner.ratio_BT, inner.clipped_BT)


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


def weighted_topr(x: LossInputs, o: LossOptions) -> TokenLoss:
    """w⁺ · (TOPR where A > 0) + w⁻ · (TOPR where A ≤ 0). Weighted TOPR as in ROLL Flash, arXiv 2510.11345."""
    inner = topr(x, o)
    weight_BT = torch.where(_clean(x.advantages_BT, x.mask_BT) > 0, o.weight_positive, o.weight_negative)
    return TokenLoss(inner.loss_BT * weight_BT, inner.ratio_BT, inner.clipped_BT)


POLICY_LOSSES: dict[str, PolicyLoss] = {
    loss.name: loss
    for loss in (
        PolicyLoss("ppo", ppo, "seq-mean-token-mean"),
        PolicyLoss("grpo", ppo, "seq-mean-token-mean"),
        PolicyLoss("dapo", ppo, "token-mean", LossOptions(clip_high=0.28)),
        PolicyLoss("dr_grpo", ppo, "constant-length"),
        PolicyLoss("bnpo", ppo, "token-mean"),
        PolicyLoss("reinforce_pp", ppo, "token-mean"),
        PolicyLoss("rloo", reinforce, "seq-mean-token-sum"),
        PolicyLoss("gspo", gspo, "seq-mean-token-mean", LossOptions(clip_low=3e-4, clip_high=4e-4)),
        PolicyLoss("decoupled_ppo", decoupled_ppo, "token-mean", recompute_prox=True),
        PolicyLoss("tis", tis, "token-mean", LossOptions(cap=1.0)),
        PolicyLoss("cispo", cispo, "token-mean"),
        PolicyLoss("topr", topr, "token-mean", LossOptions(cap=1.0)),
        PolicyLoss("weighted_topr", weighted_topr, "token-mean", LossOptions(cap=1.0)),
        PolicyLoss("kimi", kimi, "token-mean", ties=True),
    )
}
"""By name, as recipes say it."""
