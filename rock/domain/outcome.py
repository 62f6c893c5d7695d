"""How an episode ends, and where the ledger books it.

Rule 1 of the house: a broken environment is never a reward. An episode is *completed*, *truncated* or *void*, and only
the first two carry a reward. Rule 2: every dispatched episode is booked exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class VoidCause(StrEnum):
    """Why an episode says nothing about the policy."""

    SANDBOX_LOST = "sandbox_lost"  # container, guest or env process died or fell silent
    ENVIRONMENT_ERROR = "environment_error"  # the environment's own code raised
    RESET_FAILED = "reset_failed"
    DEADLINE = "deadline"  # the platform, not the policy, was too slow
    LEASE_LOST = "lease_lost"
    QUARANTINED = "quarantined"  # its task cannot be reset, again and again: leave it out
    PLATFORM = "platform"  # control plane unreachable, no capacity


@dataclass(frozen=True, slots=True)
class Completed:
    """The environment ended the episode. ``success`` is what success rates count."""

    reward: float
    success: bool


@dataclass(frozen=True, slots=True)
class Truncated:
    """A limit ended the episode (steps, tokens). It counts, with the reward it had."""

    reason: str
    reward: float = 0.0
    success: bool = False


@dataclass(frozen=True, slots=True)
class Void:
    """Something broke. Never a reward, never in group statistics, never in the loss; the episode is replaced."""

    cause: VoidCause
    detail: str = ""


Outcome = Completed | Truncated | Void


class LedgerState(StrEnum):
    """The account an episode is booked on. All but ``IN_FLIGHT`` are terminal, and each episode ends in one of them."""

    IN_FLIGHT = "in_flight"
    TRAINED = "trained"
    FILTERED = "filtered"  # its group had no signal (zero variance)
    STALE = "stale"  # could no longer be fresh enough to train on
    VOID = "void"
    CANCELLED = "cancelled"  # redundant, or the run ended
    EVALUATED = "evaluated"  # played to measure, not to train


def outcome_label(outcome: Outcome) -> str:
    """``completed``, ``truncated`` or ``void``: the word shown to people and stored."""
    return type(outcome).__name__.lower()
