"""The roles of a learner step, kept together: learner, critics, actor_attn, reference. Saved and loaded as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roll_core.errors import CheckpointError
from roll_core.learners.base import ActorAttn, Critics, Learner, Reference
from roll_core.learners.recovering import Recovering
from roll_core.types import Weights

_CRITICS = "critics"
_REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Roles:
    learner: Learner
    critics: Critics | None = None
    """Whoever estimates values: advantage ``gae`` and the masks of AsyPPO need it."""
    actor_attn: ActorAttn | None = None
    """Whoever reads attention: the credit of attention rhythm needs it. Has no state of its own."""
    reference: Reference | None = None
    """The policy of ``kl_coef``, where it is not in the learner."""

    @property
    def version(self) -> int:
        return self.learner.version

    def weights(self) -> Weights:
        return self.learner.weights()

    def restarts(self) -> dict[str, float]:
        """``…/restarts``: how often each role that can be replaced was."""
        names = ("learner", "critic", "actor_attn", "reference")
        roles = (self.learner, self.critics, self.actor_attn, self.reference)
        named: Iterable[tuple[str, object]] = zip(names, roles, strict=True)
        return {f"{name}/restarts": float(role.restarted) for name, role in named if isinstance(role, Recovering)}

    def save(self, directory: Path) -> None:
        self.learner.save(directory)
        if self.critics is not None:
            self.critics.save(directory / _CRITICS)
        if self.reference is not None:
            self.reference.save(directory / _REFERENCE)

    def load(self, directory: Path) -> None:
        """Raises CheckpointError when a part is missing, torn, or of another recipe."""
        if self.reference is None and (directory / _REFERENCE).is_dir():
            raise CheckpointError(
                f"{directory} keeps its reference in a role of its own: go on with the placement.reference the run "
                "began with, not 'learner'."
            )
        self.learner.load(directory)
        if self.critics is not None:
            self.critics.load(directory / _CRITICS)
        if self.reference is not None:
            self.reference.load(directory / _REFERENCE)
        if self.actor_attn is not None:  # no state of its own: it is the policy
            self.actor_attn.load_weights(self.learner.weights())

    def close(self) -> None:
        """End whatever processes they have."""
        for role in (self.learner, self.critics, self.actor_attn, self.reference):
            if role is not None:
                role.close()
