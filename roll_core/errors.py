"""The trainer's own errors; the platform's come from ``rock.domain.errors`` and are passed on as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roll_core.types import Generation


class RollError(Exception):
    """Base. The text names the value, what was expected, and what to do."""


class RecipeError(RollError):
    """A recipe or an override is malformed, has an unknown key, or contradicts itself."""


class CheckpointError(RollError):
    """A checkpoint is missing, torn, or belongs to another recipe."""


class EngineDead(RollError):
    """The engine's worker ended; nothing more will come from it.

    ``partial``: what it had sampled of the request that raises this, where it can still tell: another goes on from it.
    """

    partial: Generation | None = None


class NoProgress(RollError):
    """A wait exceeded its deadline. The text names the wait and the state of everything that could have ended it."""


class PlatformOutage(RollError):
    """The platform was away, or lost every episode, for longer than the recipe tolerates."""


class RunStopped(RollError):
    """A run ended early. The text says why, where its last checkpoint is, and how to continue."""


class RunPaused(RollError):
    """A rule of the recipe's alerts ended the run before the data in question was trained on. The text says which and
    why, and how to go on."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good
        """The rule said ``stop``, not ``pause``."""


class LearnerFailed(RollError):
    """A learner step raised. The weights of the step before are in the last checkpoint."""


class PlacementError(RollError):
    """The roles of a run cannot be placed as its recipe says."""


class LearnerDead(RollError):
    """The processes that hold the learner, or another role of its step, ended or cannot be reached. Another can go on
    from its last checkpoint."""


class WeightsTorn(RollError):
    """A version of the weights did not arrive as it was sent."""


class WrongBase(WeightsTorn):
    """Weights came as changes to another version than the one that is held; the whole version is needed."""


class RecordError(RollError):
    """A run's own record, its metrics, episodes or event log, cannot be written or read."""
