"""Learners turn batches into new versions of the policy."""

from roll_core.learners.base import Learner
from roll_core.learners.config import LearnerConfig

__all__ = ["Learner", "LearnerConfig"]
