"""What the decisions of rollout are about: an episode to play, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from rock.domain.outcome import LedgerState
from roll_core.types import Trajectory


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode to play: admitted, in the ledger, and initiated by ``init_version``."""

    id: str
    group_id: str
    task: str
    seed: int
    """Seed of the environment: the members of a group share it, so that they face the same episode."""
    sampling_seed: int
    """Seed of the policy's sampling: different for every member, the same for a replacement of that member."""
    init_version: int


@dataclass(frozen=True, slots=True)
class Booking:
    """The end of an episode in the ledger. ``step`` is the training step it belongs to."""

    episode_id: str
    state: LedgerState
    step: int
    trajectory: Trajectory | None = None
    """Everything the episode produced; None only for episodes given up before they were played."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What the driver must do after an event: report ``booked``, and end the episodes in ``cancel``."""

    booked: tuple[Booking, ...] = ()
    cancel: tuple[str, ...] = ()

    def __add__(self, other: Effects) -> Effects:
        return Effects(self.booked + other.booked, self.cancel + other.cancel)
