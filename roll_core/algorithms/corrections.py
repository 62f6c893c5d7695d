"""Corrections for what engine and learner see differently: importance weights and rejection, on top of any loss.

Sampling and training compute the same policy with other kernels, precisions and, in asynchronous training, other
weights, so that even before the first update w = π_prox/π_behave is not 1 (Yao et al., "Your efficient RL framework
secretly brings you off-policy RL training", 2025; Liu et al., "When speed kills stability", 2025).

Invariants: a correction has no gradient; where w is 1 everywhere it changes nothing; a rejected token keeps its place
in the aggregation, so that rejection makes a step smaller and never louder [ours]; a masked token changes nothing.

How a weight and a loss go together: with a weight the loss is shown π_prox in the place of π_behave. It then corrects
for what its own updates did since the step began, the weight for all that came before; no ratio is counted twice. So
``ppo`` with ``token_weight`` is ``decoupled_ppo`` with that cap, and ``tis`` is TIS on π_θ/π_prox times the weight.
Rejection leaves the loss as it is.

Symbols: π_prox the learner at the start of the update, π_behave the engine as it sampled, w = π_prox/π_behave, C the
cap, o a row's response tokens. Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from roll_core.algorithms.policy_losses import (
    LOG_RATIO_LIMIT,
    LossInputs,
    LossOptions,
    PolicyLoss,
    TokenLoss,
    log_ratio,
)

Correction = Literal["token_weight", "sequence_weight", "token_veto", "sequence_band"]


@dataclass(frozen=True, slots=True)
class CorrectionSettings:
    """Which corrections, and their numbers. ``band``: lowest and highest geometric mean of w."""

    names: tuple[Correction, ...] = ()
    cap: float = 2.0
    veto: float = 1e-4
    band: tuple[float, float] = (0.99, 1.01)

    @property
    def weighs(self) -> bool:
        return "token_weight" in self.names or "sequence_weight" in self.names


def token_weight(log_w_BT: Tensor, cap: float) -> Tensor:
    """min(w_t, C). Truncated importance sampling; IMPALA, arXiv 1802.01561."""
    return log_w_BT.exp().clamp(max=cap)


def sequence_weight(log_w_BT: Tensor, cap: float) -> Tensor:
    """min(Π_t w_t, C), the same on all tokens of a row: the unbiased weight of a whole response, truncated."""
    total_B1 = log_w_BT.sum(1, keepdim=True).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return total_B1.exp().clamp(max=cap).expand_as(log_w_BT)


def token_veto(log_w_BT: Tensor, lowest: float) -> Tensor:
    """1, or 0 on all tokens of a row of which one has w < ``lowest``: something sampled that the learner thinks all but
    impossible, which no weight makes good."""
    smallest_B1 = log_w_BT.amin(1, keepdim=True)
    return (smallest_B1.exp() >= lowest).to(log_w_BT.dtype).expand_as(log_w_BT)


def sequence_band(log_w_BT: Tensor, mask_BT: Tensor, band: tuple[float, float]) -> Tensor:
    """1, or 0 on all tokens of a row whose geometric mean (Π_t w_t)^(1/|o|) lies outside ``band``."""
    mean_B1 = (log_w_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)).exp()
    return ((mean_B1 >= band[0]) & (mean_B1 <= band[1])).to(log_w_BT.dtype).expand_as(log_w_BT)


def correction_weights(prox_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, settings: CorrectionSettings) -> Tensor:
    """What each token's loss is multiplied by, BT, without gradient; 0 where it is rejected, 1 outside the mask."""
    log_w_BT = log_ratio(prox_BT, behaviour_BT, mask_BT).detach()
    made = {
        "token_weight": lambda: token_weight(log_w_BT, settings.cap),
        "sequence_weight": lambda: sequence_weight(log_w_BT, settings.cap),
        "token_veto": lambda: token_veto(log_w_BT, settings.veto),
        "sequence_band": lambda: sequence_band(log_w_BT, mask_BT, settings.band),
    }
    weight_BT = torch.ones_like(log_w_BT)
    for name in settings.names:
        weight_BT = weight_BT * made[name]()
    return torch.where(mask_BT.bool(), weight_BT, torch.ones_like(weight_BT))


def corrected(loss: PolicyLoss, settings: CorrectionSettings) -> PolicyLoss:
    """``loss`` under the corrections; it then needs π_prox recomputed. Itself where none is named."""
    if not settings.names:
        return loss

    def per_token(x: LossInputs, o: LossOptions) -> TokenLoss:
        weight_BT = correction_weights(x.prox_logprobs_BT, x.behaviour_logprobs_BT, x.mask_BT, settings)
        if settings.weighs:
            shown = replace(x, behaviour_logprobs_BT=x.prox_logprobs_BT)
        elif loss.recompute_prox:
            shown = x
        else:  # its π_prox is by its own definition the policy that sampled
            shown = replace(x, prox_logprobs_BT=x.behaviour_logprobs_BT)
        inner = loss.per_token(shown, o)
        return replace(inner, loss_BT=inner.loss_BT * weight_BT, weight_BT=weight_BT)

    return replace(loss, per_token=per_token, recompute_prox=True)
