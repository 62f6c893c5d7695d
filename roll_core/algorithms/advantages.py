"""How much better a response was than expected.

Invariants: pure functions; nothing here sees a void trajectory, so every reward given is a reward earned. Group
statistics use the members present: groups may differ in size, and a group of one says nothing (advantage 0). Sums are
taken in float64: in float32 the mean of equal rewards may differ from them by a rounding error, which division by a
standard deviation of the same size would turn into a signal.

Shape legend: B trajectories, T tokens, K turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from roll_core.algorithms.masked import masked_whiten

GroupAdvantage = Callable[[Tensor, Tensor], Tensor]
"""(rewards_B, group_B) → advantages_B. ``group_B`` holds any integers; equal ones are one group."""


def _group_sums(x_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over, and size of, the group of each row."""
    _, index_B = torch.unique(group_B, return_inverse=True)
    count = torch.zeros(int(index_B.max()) + 1, dtype=x_B.dtype, device=x_B.device)
    total = count.clone().index_add_(0, index_B, x_B)
    count.index_add_(0, index_B, torch.ones_like(x_B))
    return total[index_B], count[index_B]


def grpo(rewards_B: Tensor, group_B: Tensor, eps: float = 1e-6) -> Tensor:
    """(R − mean) / (std + eps) within the group, sample std. GRPO, arXiv 2402.03300 §4.1.2."""
    deviation_B = dr_grpo(rewards_B.double(), group_B)
    square_B, count_B = _group_sums(deviation_B.square(), group_B)
    return (deviation_B / ((square_B / (count_B - 1).clamp(min=1)).sqrt() + eps)).to(rewards_B.dtype)


def dr_grpo(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """R − mean within the group: no division that would weigh easy and hard tasks more. Dr. GRPO, arXiv 2503.20783."""
    total_B, count_B = _group_sums(rewards_B.double(), group_B)
    return (rewards_B - total_B / count_B).to(rewards_B.dtype)


def rloo(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """R − mean of the others of the group. RLOO, arXiv 2402.14740."""
    total_B, count_B = _group_sums(rewards_B.double(), group_B)
    baseline_B = (total_B - rewards_B) / (count_B - 1).clamp(min=1)
    return torch.where(count_B > 1, rewards_B - baseline_B, 0.0).to(rewards_B.dtype)


def reinforce_pp(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Return whitened over the whole batch, groups ignored (γ = 1). REINFORCE++, arXiv 2501.03262."""
    return masked_whiten(rewards_B.double(), torch.ones_like(rewards_B)).to(rewards_B.dtype)


def bnpo(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """(R − p) / f(p; 1 + a/3, 1 + b/3), p the group's mean reward, f the density of a Beta distribution. BNPO, arXiv
    2506.02864: that choice gives the gradient least variance where p is itself Beta(a, b) distributed over tasks.

    a and b by the method of moments from the groups of this batch. Where that has no answer, for the groups are all
    alike or scattered more widely than any Beta, f is 1 [ours]: Dr. GRPO. Raises ValueError for rewards outside [0, 1].
    """
    if bool(((rewards_B < 0) | (rewards_B > 1)).any()):
        outside = rewards_B[(rewards_B < 0) | (rewards_B > 1)][0].item()
        raise ValueError(f"advantage 'bnpo' needs rewards from 0 to 1 and got {outside}: scale them, or use 'grpo'")
    total_B, count_B = _group_sums(rewards_B.double(), group_B)
    p_B = total_B / count_B
    _, first = torch.unique(group_B, return_inverse=True)
    p_G = torch.zeros(int(first.max()) + 1, dtype=p_B.dtype, device=p_B.device).index_copy_(0, first, p_B)
    mean, variance = p_G.mean(), p_G.var(correction=0)
    strength = mean * (1 - mean) / variance - 1
    deviation_B = rewards_B - p_B
    if variance < 1e-12 or strength <= 0:
        return deviation_B.to(rewards_B.dtype)
    alpha, beta = 1 + mean * strength / 3, 1 + (1 - mean) * strength / 3
    norm = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - torch.lgamma(beta)
    inside_B = (p_B > 0) & (p_B < 1)
    safe_B = torch.where(inside_B, p_B, 0.5)
    density_B = (norm + (alpha - 1) * safe_B.log() + (beta - 1) * (1 - safe_B).log()).exp()
    return torch.where(inside_B, deviation_B / density_B, 0.0).to(rewards_B.dtype)


ADVANTAGES: dict[str, GroupAdvantage] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "bnpo": bnpo,
}
"""By name, as recipes say it."""


# --- turns -----------------------------------------------------------------------------------------------------------


def of_turns(
    x_BT: Tensor, turn_BT: Tensor, how: Literal["first", "sum"], turns: int | None = None
) -> tuple[Tensor, Tensor]:
    """x_BK, a turn's first response token or the sum over all of them, and mask_BK: 1 where the turn has one.

    ``turn_BT``: index of the token's turn, -1 outside the mask. ``turns``: K, the highest index + 1 unless given.
    """
    inside_BT = turn_BT >= 0
    index_BT = turn_BT.clamp(min=0)
    count = turns if turns is not None else int(turn_BT.max()) + 1
    mask_BK = torch.zeros(len(x_BT), max(count, 1), dtype=x_BT.dtype, device=x_BT.device)
    x_BK = mask_BK.clone()
    mask_BK.scatter_add_(1, index_BT, inside_BT.to(x_BT.dtype))
    if how == "sum":
        chosen_BT = inside_BT
    else:
        before_BT = torch.nn.functional.pad(turn_BT[:, :-1], (1, 0), value=-1).cummax(1).values
        chosen_BT = inside_BT & (turn_BT > before_BT)
    x_BK.scatter_add_(1, index_BT, torch.where(chosen_BT, x_BT, torch.zeros((), dtype=x_BT.dtype, device=x_BT.device)))
    return x_BK, mask_BK.clamp(max=1)


def on_tokens(x_BK: Tensor, turn_BT: Tensor) -> Tensor:
    """The turn's value on each of its response tokens, 0 elsewhere."""
    x_BT = x_BK.gather(1, turn_BT.clamp(min=0))
    return torch.where(turn_BT >= 0, x_BT, torch.zeros_like(x_BT))


def gigpo_steps(
    rewards_BK: Tensor, mask_BK: Tensor, anchor_BK: Tensor, *, gamma: float = 0.95, std: bool = True
) -> Tensor:
    """Step advantages BK: a turn against the turns of its group that began in the same state. GiGPO, arXiv 2505.10978
    eq. 6 and 7.

    What is compared is the discounted return from the turn on, γ once per turn. ``anchor_BK``: equal integers are one
    state. With ``std`` also divided by the standard deviation (sample, as in :func:`grpo` [ours]). A state met once
    says nothing: 0, as everywhere here [ours].
    """
    returns_BK = gae(rewards_BK, torch.zeros_like(rewards_BK), mask_BK, gamma, 1.0)[0]
    inside = mask_BK > 0
    steps_BK = torch.zeros_like(returns_BK)
    if inside.any():
        steps_BK[inside] = (grpo if std else dr_grpo)(returns_BK[inside], anchor_BK[inside])
    return steps_BK


# --- tokens ----------------------------------------------------------------------------------------------------------


def spread(advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """The trajectory's advantage on each of its response tokens, 0 elsewhere."""
    return advantages_B.unsqueeze(1) * mask_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, BT each. Generalised advantage estimation, arXiv 1506.02438 eq. 16.

    δ_t = r_t + γ V_{t'} − V_t and A_t = δ_t + γλ A_{t'}, where t' is the row's next response token: context between
    two turns is the environment's doing and passes value on undiminished. Both results are 0 outside the mask.
    """
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = torch.zeros_like(values_BT[:, 0])
    running_B = torch.zeros_like(next_value_B)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        here_B = mask_BT[:, t].bool()
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = torch.where(here_B, delta_B + gamma * lam * running_B, running_B)
        next_value_B = torch.where(here_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(here_B, running_B, torch.zeros_like(running_B))
    return advantages_BT, (advantages_BT + values_BT) * mask_BT
