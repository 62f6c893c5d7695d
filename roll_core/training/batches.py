"""Groups to a :class:`TrainBatch`: padded on the right, only sampled tokens in the mask. Facts only; what they are
worth is the business of :mod:`roll_core.training.credit_flow`.

Invariants: a void trajectory is never in a batch; the rewards of a row's tokens add up to the reward of its outcome.

Shape legend: B trajectories, T tokens of the longest, K turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rock.domain.outcome import Truncated
from roll_core.rollout.groups import reward_of
from roll_core.types import Group, TrainBatch, Trajectory


def make_batch(groups: Sequence[Group], *, pad_id: int = 0) -> TrainBatch:
    """Everything but the advantages, which are 0. Raises ValueError if a void trajectory is among them: it has no
    reward to learn from."""
    rows = [m for g in groups for m in g.members]
    rewards_B = torch.tensor([reward_of(m) for m in rows], dtype=torch.float32)
    width = max(len(m.token_ids()) for m in rows)
    mask_BT = _padded([m.response_mask() for m in rows], width, 0, torch.float32)
    return TrainBatch(
        tokens_BT=_padded([m.token_ids() for m in rows], width, pad_id, torch.int64),
        mask_BT=mask_BT,
        attention_BT=_padded([[1.0] * len(m.token_ids()) for m in rows], width, 0, torch.float32),
        behaviour_logprobs_BT=_padded([m.logprobs() for m in rows], width, 0.0, torch.float32),
        advantages_BT=torch.zeros_like(mask_BT),
        versions_BT=_padded([m.versions() for m in rows], width, -1, torch.int64),
        rewards_B=rewards_B,
        group_B=torch.tensor([i for i, g in enumerate(groups) for _ in g.members]),
        trajectory_ids=tuple(m.id for m in rows),
        turn_BT=_padded([_turn_indices(m) for m in rows], width, -1, torch.int64),
        rewards_BT=_padded([_token_rewards(m) for m in rows], width, 0.0, torch.float32),
        truncated_B=torch.tensor([isinstance(m.outcome, Truncated) for m in rows]),
    )


def invalid_tokens(groups: Sequence[Group], width: int) -> torch.Tensor:
    """1 (float32, BT) on the tokens of turns without a valid action."""
    return _padded([m.invalid_mask() for g in groups for m in g.members], width, 0, torch.float32)


def tasks(groups: Sequence[Group]) -> torch.Tensor:
    """Index of each row's task, int64 B. Several groups may play the same one."""
    index: dict[str, int] = {}
    return torch.tensor([index.setdefault(g.task, len(index)) for g in groups for _ in g.members])


def anchors(groups: Sequence[Group]) -> torch.Tensor:
    """int64 BK: equal numbers where members of one group saw the same text before a turn; -1 where a row has no such
    turn. GiGPO's anchor states (arXiv 2505.10978 §3.3), equality taken of what the policy was shown."""
    index: dict[tuple[int, str], int] = {}
    rows = [
        [index.setdefault((i, turn.observation), len(index)) for turn in m.turns]
        for i, g in enumerate(groups)
        for m in g.members
    ]
    return _padded(rows, max(len(row) for row in rows), -1, torch.int64)


def _padded(values: Sequence[Sequence[float]], width: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[*v, *[fill] * (width - len(v))] for v in values], dtype=dtype)


def _turn_indices(trajectory: Trajectory) -> list[int]:
    return [
        i
        for k, turn in enumerate(trajectory.turns)
        for i in (*([-1] * len(turn.context_ids)), *([k] * len(turn.generation.token_ids)))
    ]


def _token_rewards(trajectory: Trajectory) -> list[float]:
    """Each turn's reward at its last token; that of a turn without one at the token before. What the outcome holds
    beyond the turns' rewards was earned at the end."""
    rewards = [0.0] * len(trajectory.token_ids())
    position, last, waiting = 0, None, 0.0
    for turn in trajectory.turns:
        position += len(turn.context_ids) + len(turn.generation.token_ids)
        if turn.generation.token_ids:
            last = position - 1
        waiting += turn.reward
        if last is not None:
            rewards[last] += waiting
            waiting = 0.0
    if last is not None:
        rewards[last] += reward_of(trajectory) - sum(rewards)
    return rewards
