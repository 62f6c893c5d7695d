"""What a learner step is, for the loop and for a replay: both train by this function, or a replay proves nothing."""

from __future__ import annotations

from collections.abc import Sequence

from roll_core.config import Recipe
from roll_core.errors import LearnerFailed
from roll_core.training.batches import make_batch
from roll_core.training.roles import Roles
from roll_core.types import Group


def update(recipe: Recipe, roles: Roles, groups: Sequence[Group], progress: float) -> dict[str, float]:
    """All updates on one batch. Depends on nothing but its arguments. Raises LearnerFailed."""
    algorithm = recipe.algorithm
    try:
        batch = make_batch(
            groups,
            algorithm.advantage,
            negative_weight=algorithm.negative_weight,
            invalid_action_penalty=algorithm.invalid_action_penalty,
        )
        return dict(roles.learner.train_step(batch, progress=progress))
    except Exception as error:
        raise LearnerFailed(f"The learner's step at version {roles.version} raised {error!r}.") from error
