"""Groups to a :class:`TrainBatch`: padded on the right, only sampled tokens in the mask, advantages per token.

Shape legend: B trajectories, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from roll_core.algorithms import ADVANTAGES, spread
from roll_core.rollout.groups import reward_of
from roll_core.types import Group, TrainBatch


def make_batch(
    groups: Sequence[Group],
    advantage: str,
    *,
    negative_weight: float = 1.0,
    invalid_action_penalty: float = 0.0,
    pad_id: int = 0,
) -> TrainBatch:
    """Raises ValueError if a void trajectory is among them: it has no reward to learn from.

    ``negative_weight`` scales the advantages below 0. An agent's failures are its longest episodes and most of what
    they contain was no mistake, so at full weight they flatten the policy faster than the few successes shape it. The
    same asymmetry as the weights of weighted TOPR (arXiv 2510.11345), applied to the advantage so that it goes with
    every loss. ``invalid_action_penalty`` is taken from the advantage of the tokens of turns without a valid action,
    and its mean over the batch is given back to all: without that baseline it would push down whatever such turns have
    in common with the others, "go to" as such.
    """
    rows = [m for g in groups for m in g.members]
    rewards_B = torch.tensor([reward_of(m) for m in rows], dtype=torch.float32)
    group_B = torch.tensor([i for i, g in enumerate(groups) for _ in g.members])
    width = max(len(m.token_ids()) for m in rows)

    def padded(values: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], dtype=dtype)

    advantages_B = ADVANTAGES[advantage](rewards_B, group_B)
    advantages_B = torch.where(advantages_B < 0, advantages_B * negative_weight, advantages_B)
    invalid_BT = padded([m.invalid_mask() for m in rows], 0, torch.float32)
    mask_BT = padded([m.response_mask() for m in rows], 0, torch.float32)
    mean_invalid = invalid_BT.sum() / mask_BT.sum().clamp(min=1)
    return TrainBatch(
        tokens_BT=padded([m.token_ids() for m in rows], pad_id, torch.int64),
        mask_BT=mask_BT,
        attention_BT=padded([[1.0] * len(m.token_ids()) for m in rows], 0, torch.float32),
        behaviour_logprobs_BT=padded([m.logprobs() for m in rows], 0.0, torch.float32),
        advantages_BT=spread(advantages_B, mask_BT) - invalid_action_penalty * (invalid_BT - mean_invalid * mask_BT),
        versions_BT=padded([m.versions() for m in rows], -1, torch.int64),
        rewards_B=rewards_B,
        group_B=group_B,
        trajectory_ids=tuple(m.id for m in rows),
    )
