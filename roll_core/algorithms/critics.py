"""AsyPPO (arXiv 2510.01656): several small critics that each learn from their own share of every prompt's responses,
and what their disagreement says.

Invariants: pure functions, deterministic given their arguments (and a generator); the shares of a prompt's responses
are disjoint, together all of them, and differ in size by at most one; M equal critics have σ = 0 everywhere, exactly;
a mask takes ⌊share · n⌋ of the n response tokens of the whole batch, ties by position; a share of 0 changes nothing.

The value at a response token is that of the state *before* it was sampled: what is expected when everything up to the
token before is given. Only then is A = R − V a judgement on the choice of this token.

Shape legend: M critics, B rows (responses), T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roll_core.algorithms.credit import Credit, CreditTransform, Evidence
from roll_core.algorithms.masked import masked_mean

_ROUNDING = 1e-9
"""0.29 · 100 is 28.999999999999996; the share meant 29."""


# --- the data partition ----------------------------------------------------------------------------------------------


def partition(group_B: Tensor, critics: int, generator: torch.Generator) -> Tensor:
    """Which critic learns from which response: owner_B, 0 … ``critics`` − 1, the paper's data partition.

    Of every group (equal ``group_B``: one prompt) each critic gets ⌊G/M⌋ or ⌈G/M⌉ responses at random, so that every
    critic sees every prompt with at least M responses and none sees another's. Where G is no multiple of M, who gets
    one more goes round from group to group [ours], so that over the whole batch, too, sizes differ by at most one.
    Raises ValueError for fewer than one critic.
    """
    if critics < 1:
        raise ValueError(f"critics={critics}: responses can only be shared out among at least one")
    shuffled_B = torch.randperm(len(group_B), generator=generator)
    first = int(torch.randint(critics, (), generator=generator))
    order_B = shuffled_B[torch.argsort(group_B.cpu()[shuffled_B], stable=True)]
    owner_B = torch.empty(len(group_B), dtype=torch.int64)
    owner_B[order_B] = (torch.arange(len(group_B)) + first) % critics
    return owner_B.to(group_B.device)


# --- returns and the critics' loss -----------------------------------------------------------------------------------


def with_bootstrap(
    rewards_BT: Tensor, mask_BT: Tensor, truncated_B: Tensor | None, final_B: Tensor, gamma: float = 1.0
) -> Tensor:
    """Rewards in which a truncated row's last response token also earns γ·V(s_T), ``final_B`` being V(s_T).

    A limit ended that episode, not the environment: the state it stopped in was still worth something (Pardo et al.,
    arXiv 1712.00378). A terminated row's end is worth nothing, whatever ``final_B`` says. With these rewards
    :func:`~roll_core.algorithms.advantages.gae` need not know of truncation. Its returns at λ = 1 with values of 0 are
    the Monte-Carlo returns R.
    """
    if truncated_B is None or not bool(truncated_B.any()):
        return rewards_BT
    position_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B = ((mask_BT > 0) * position_T).amax(1) - 1  # −1: a row without a response
    chosen_B = (truncated_B.to(mask_BT.device) & (last_B >= 0)).nonzero().squeeze(1)
    out_BT = rewards_BT.clone()
    out_BT[chosen_B, last_B[chosen_B]] += gamma * final_B.to(rewards_BT.dtype)[chosen_B]
    return out_BT


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Loss per token, and (bool) where the clip took effect; any shape. Squared error to the return.

    With ``clip`` c: max((V − R)², (V_old + clamp(V − V_old, −c, c) − R)²), PPO's value clipping (Schulman et al.;
    Engstrom et al., arXiv 2005.12729 §3): once V has moved by more than c towards R there is no gradient any more.
    """
    plain = (values - returns).square()
    if clip is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip, clip)
    bounded = (near - returns).square()
    return torch.maximum(plain, bounded), bounded > plain


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over the mask: 1 perfect, 0 no better than a constant, negative worse. 0 where the
    returns do not vary."""
    inside = mask_BT > 0
    if int(inside.sum()) < 2:
        return 0.0
    returns_N = returns_BT[inside].double()
    spread = returns_N.var(correction=0)
    left = (returns_N - values_BT[inside].double()).var(correction=0)
    return float(1 - left / spread) if spread > 0 else 0.0


# --- the ensemble ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What M critics say together. BT both."""

    mean_BT: Tensor
    """V̄, on which advantages are estimated (the paper found the mean better than the minimum)."""
    std_BT: Tensor
    """σ, population std over the critics (divided by M [ours]): their disagreement."""


def ensemble(values_MBT: Tensor) -> Ensemble:
    """Mean and disagreement. Sums are taken of the differences from the first critic: equal values give σ = 0 exactly,
    which division of a rounded sum would not."""
    difference_MBT = (values_MBT - values_MBT[0]).double()
    mean_BT = difference_MBT.mean(0)
    std_BT = (difference_MBT - mean_BT).square().mean(0).sqrt()
    return Ensemble((values_MBT[0] + mean_BT).to(values_MBT.dtype), std_BT.to(values_MBT.dtype))


def agreement(values_MBT: Tensor, mask_BT: Tensor) -> float:
    """Mean correlation (Pearson) of two different critics' values over the mask: 1 they rank all states alike, 0 they
    have nothing in common. 0 for a single critic, and for pairs of which one says the same everywhere."""
    count = len(values_MBT)
    inside = mask_BT > 0
    if count < 2 or int(inside.sum()) < 2:
        return 0.0
    centred_MN = values_MBT[:, inside].double()
    centred_MN = centred_MN - centred_MN.mean(1, keepdim=True)
    norm_M = centred_MN.norm(dim=1)
    scale_MM = torch.outer(norm_M, norm_M)
    correlation_MM = torch.where(scale_MM > 0, centred_MN @ centred_MN.t() / scale_MM.clamp(min=1e-300), 0.0)
    return float((correlation_MM.sum() - correlation_MM.diagonal().sum()) / (count * (count - 1)))


def disagreement_metrics(values_MBT: Tensor, mask_BT: Tensor, low: float, high: float) -> dict[str, float]:
    """``critic/…`` of the values that the advantages of a step rest on: mean value, mean σ, the σ below which a share
    ``low`` of the tokens lies and above which a share ``high`` does, agreement, and the shares that the masks take."""
    found = ensemble(values_MBT)
    count = max(1.0, float((mask_BT > 0).sum()))
    lowest_BT, highest_BT = lowest(found.std_BT, mask_BT, low), highest(found.std_BT, mask_BT, high)
    sigma_low = float(found.std_BT[lowest_BT].max()) if bool(lowest_BT.any()) else 0.0
    sigma_high = float(found.std_BT[highest_BT].min()) if bool(highest_BT.any()) else 0.0
    return {
        "critic/value_mean": float(masked_mean(found.mean_BT, mask_BT)),
        "critic/sigma_mean": float(masked_mean(found.std_BT, mask_BT)),
        "critic/sigma_low": sigma_low,
        "critic/sigma_high": sigma_high,
        "critic/agreement": agreement(values_MBT, mask_BT),
        "critic/masked_share": float(lowest_BT.sum()) / count,
        "critic/filtered_share": float(highest_BT.sum()) / count,
    }


# --- masks -----------------------------------------------------------------------------------------------------------


def lowest(x_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """Bool BT: the ⌊share · n⌋ smallest of ``x_BT`` among the n tokens of the mask; of equals those that come first, by
    row and then by position. False outside the mask. Raises ValueError for a share outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected a part of the tokens, from 0 to 1")
    inside_N = (mask_BT > 0).flatten().nonzero().squeeze(1)
    count = math.floor(share * len(inside_N) + _ROUNDING)
    order_N = torch.argsort(x_BT.flatten()[inside_N], stable=True)
    out = torch.zeros(mask_BT.numel(), dtype=torch.bool, device=mask_BT.device)
    out[inside_N[order_N[:count]]] = True
    return out.view(mask_BT.shape)


def highest(x_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """Like :func:`lowest`, the largest."""
    return lowest(-x_BT, mask_BT, share)


def advantage_mask(low: float) -> CreditTransform:
    """I^A of the paper: where the critics agree most, a share ``low`` of the batch's response tokens, there is nothing
    to learn and the advantage becomes 0. Needs ``Evidence.value_std_BT``."""

    def transform(credit: Credit, evidence: Evidence) -> Credit:
        agreed_BT = lowest(_std(evidence, "advantage_mask"), evidence.mask_BT, low)
        return replace(credit, advantages_BT=credit.advantages_BT.masked_fill(agreed_BT, 0.0))

    return transform


def entropy_filter(high: float) -> CreditTransform:
    """I^H of the paper: where the critics agree least, a share ``high`` of the batch's response tokens, a state's value
    cannot be known and exploring it earns no entropy bonus. Needs ``Evidence.value_std_BT``."""

    def transform(credit: Credit, evidence: Evidence) -> Credit:
        unclear_BT = highest(_std(evidence, "entropy_filter"), evidence.mask_BT, high)
        return replace(credit, entropy_weight_BT=credit.entropy_weight_BT.masked_fill(unclear_BT, 0.0))

    return transform


def _std(evidence: Evidence, name: str) -> Tensor:
    if evidence.value_std_BT is None:
        raise ValueError(
            f"the credit transform {name!r} needs the disagreement of at least two critics, and none was given: set "
            "critic.count to 2 or more"
        )
    return evidence.value_std_BT
