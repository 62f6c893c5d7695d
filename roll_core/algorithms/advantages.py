"""How much better a response was than expected.

Invariants: pure functions; nothing here sees a void trajectory, so every reward given is a reward earned. Group
statistics use the members present: groups may differ in size, and a group of one says nothing (advantage 0). Sums are
taken in float64: in float32 the mean of equal rewards may differ from them by a rounding error, which division by a
standard deviation of the same size would turn into a signal.

Shape legend: B trajectories, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

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


ADVANTAGES: dict[str, GroupAdvantage] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
}
"""By name, as recipes say it."""


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
