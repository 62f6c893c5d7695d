"""The roles of a learner step, kept together: learner, critics, actor_attn. Saved and loaded as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from roll_core.learners.base import ActorAttn, Critics, Learner
from roll_core.types import Weights

_CRITICS = "critics"


@dataclass(frozen=True, slots=True)
class Roles:
    learner: Learner
    critics: Critics | None = None
    """Whoever estimates values: advantage ``gae`` and the masks of AsyPPO need it."""
    actor_attn: ActorAttn | None = None
    """Whoever reads attention: the credit of attention rhythm needs it. Has no state of its own."""

    @property
    def version(self) -> int:
        return self.learner.version

    def weights(self) -> Weights:
        return self.learner.weights()

    def save(self, directory: Path) -> None:
        self.learner.save(directory)
        if self.critics is not None:
            self.critics.save(directory / _CRITICS)

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when a part is missing, torn, or of another recipe."""
        self.learner.load(directory)
        if self.critics is not None:
            self.critics.load(directory / _CRITICS)
        if self.actor_attn is not None:  # no state of its own: it is the policy
            self.actor_attn.load_weights(self.learner.weights())

    def close(self) -> None:
        """End whatever processes they have."""
        self.learner.close()
