"""What passes between rollout and learner.

Shape legend: B trajectories (rows), T tokens of the longest row, padded on the right.

A trajectory is one token sequence: what the environment and the prompt put there (*context*) and what the policy
sampled (*response*), in order. Only response tokens train. Each carries the log-probability with which it was sampled
and the policy version that sampled it; both are recorded by the engine and never recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rock.domain.outcome import Outcome

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine sampled for one request. The three sequences have the same length.

    ``logprobs`` are natural logs under the distribution actually sampled from (temperature and top-p included).
    ``token_ids`` includes the stop token when one ended it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: ``context_ids`` were appended to the sequence, then the policy sampled ``generation``."""

    context_ids: tuple[int, ...]
    generation: Generation
    observation: str
    response: str
    action: str
    reward: float = 0.0
    generate_s: float = 0.0
    env_s: float = 0.0
    valid: bool = True
    """False when no action could be read from the response, or the environment said that it was none."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode of the policy."""

    id: str
    group_id: str
    env: str
    task: str
    seed: int
    init_version: int
    """Policy version when the episode was initiated: what the staleness bound is about."""
    turns: tuple[Turn, ...]
    outcome: Outcome
    sandbox_id: str = ""
    sandbox_s: float = 0.0
    started_at_s: float = 0.0
    """Unix seconds."""
    ended_at_s: float = 0.0
    recoveries: int = 0
    """How often its sandbox was lost and the episode replayed in another."""
    open_s: float = 0.0
    """How long it waited for its sandbox."""
    reset_s: float = 0.0
    """How long the environment took to begin."""
    side_tokens: int = 0
    """Sampled for the episode, but in no turn: branches that its agent left."""

    @property
    def generated_tokens(self) -> int:
        """Sampled in its turns: what can be trained on."""
        return sum(len(t.generation.token_ids) for t in self.turns)

    @property
    def spent_tokens(self) -> int:
        """All that was sampled for it."""
        return self.generated_tokens + self.side_tokens

    def token_ids(self) -> list[int]:
        return [i for t in self.turns for ids in (t.context_ids, t.generation.token_ids) for i in ids]

    def response_mask(self) -> list[int]:
        """1 for tokens the policy sampled, 0 for context; as long as :meth:`token_ids`."""
        return [m for t in self.turns for m in (*([0] * len(t.context_ids)), *([1] * len(t.generation.token_ids)))]

    def logprobs(self) -> list[float]:
        """Behaviour log-probs, 0 on context; as long as :meth:`token_ids`."""
        return [x for t in self.turns for x in (*([0.0] * len(t.context_ids)), *t.generation.logprobs)]

    def invalid_mask(self) -> list[int]:
        """1 for tokens sampled in turns without a valid action; as long as :meth:`token_ids`."""
        return [
            m
            for t in self.turns
            for m in (*([0] * len(t.context_ids)), *([int(not t.valid)] * len(t.generation.token_ids)))
        ]

    def versions(self) -> list[int]:
        """Policy version per token, -1 on context; as long as :meth:`token_ids`."""
        return [v for t in self.turns for v in (*([-1] * len(t.context_ids)), *t.generation.versions)]


@dataclass(frozen=True, slots=True)
class Group:
    """Trajectories of one task that are compared with each other. Never contains a void one."""

    id: str
    task: str
    members: tuple[Trajectory, ...]


@dataclass(slots=True)
class TrainBatch:
    """What one learner step trains on. Position t of every tensor speaks about token t; token 0 is never a target."""

    tokens_BT: torch.Tensor  # int64
    mask_BT: torch.Tensor  # float32, 1 on response tokens
    attention_BT: torch.Tensor  # float32, 1 on tokens that exist
    behaviour_logprobs_BT: torch.Tensor  # float32, 0 outside the mask
    advantages_BT: torch.Tensor  # float32, 0 outside the mask
    versions_BT: torch.Tensor  # int64, -1 outside the mask
    rewards_B: torch.Tensor  # float32
    group_B: torch.Tensor  # int64, index of the row's group
    trajectory_ids: Sequence[str] = field(default_factory=tuple)
    turn_BT: torch.Tensor | None = None  # int64, index of the turn that sampled the token, -1 outside the mask
    rewards_BT: torch.Tensor | None = None  # float32, what was earned where: at the last token of each turn
    truncated_B: torch.Tensor | None = None  # bool, cut off by a limit: the state after the last token has a value
    entropy_weight_BT: torch.Tensor | None = None  # float32, factor on the entropy bonus; None: 1 everywhere
    prox_logprobs_BT: torch.Tensor | None = None  # float32, log π_prox where it is known already; None: it is not
    reference_logprobs_BT: torch.Tensor | None = None  # float32, log π_ref where the learner has no reference itself


@dataclass(slots=True)
class Weights:
    """A version of the policy's parameters on its way to the engines. Tensors are not shared with the learner."""

    version: int
    tensors: dict[str, torch.Tensor]
