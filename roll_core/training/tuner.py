"""From what each step measured to what the run should do: the pace it goes on at, and why. Pure.

The advice itself is ``roll_core.rollout.tuning``'s. Here it is given means over the last ``WINDOW`` steps, kept within
what the recipe allows, and only acted on once it has been the same ``AGREE`` times in a row: costs are noisy, and each
change takes about α steps to show.

Invariants: α never exceeds the recipe's; extra groups only where batches take what has finished; never more than one
extra group per wanted group, nor one extra member more than the recipe's.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from roll_core.rollout.buffer import Order
from roll_core.rollout.machine import Pace
from roll_core.rollout.tuning import Advice, Measured, recommend
from roll_core.types import Trajectory

WINDOW = 8
AGREE = 3
SLOW = 3.0
"""An episode is slow whose mean step takes so many times the median."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step's measurements. Seconds are sums over all workers of a kind, but for the last two."""

    samples: int
    groups: int
    generate_s: float
    """Engine seconds that the batch's tokens cost."""
    learner_s: float
    sync_s: float
    longest_s: float
    """The longest episode that ended, from its start to its end."""
    voids: int = 0
    ended: int = 0
    filtered_groups: int = 0
    env_s: tuple[float, ...] = ()
    """Of each episode that ended, the mean latency of its environment."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the recipe allows."""

    alpha: float
    group_size: int
    groups_per_batch: int
    extra_groups: int
    extra_members: int
    order: Order
    engines: int
    epochs: int

    def clamp(self, advice: Advice) -> Pace:
        finished = self.order == "finished"
        return Pace(
            alpha=min(self.alpha, advice.alpha),
            extra_groups=min(self.groups_per_batch, max(self.extra_groups, advice.extra_groups)) if finished else 0,
            extra_members=min(self.extra_members + 1, max(self.extra_members, advice.extra_members)),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """``pace`` is what the recipe allows of ``advice``."""

    advice: Advice
    pace: Pace
    workers: int

    def values(self) -> dict[str, float]:
        return {
            "auto/alpha": self.advice.alpha,
            "auto/beta": self.advice.beta(self.workers),
            "auto/colocated": float(self.advice.placement == "colocated"),
            "auto/extra_groups": float(self.advice.extra_groups),
            "auto/extra_members": float(self.advice.extra_members),
            "auto/predicted_step_s": self.advice.predicted_s,
            "auto/synchronous_step_s": self.advice.synchronous_s,
        }

    def __str__(self) -> str:
        advice = self.advice
        where = (
            f"β = {advice.train_workers}/{self.workers} of the workers train"
            if advice.placement == "split"
            else "all workers generate, then all train"
        )
        asked = f"α = {advice.alpha:g}, {where}, {advice.extra_groups} more groups, {advice.extra_members} more members"
        return f"{asked}; {'; '.join(advice.reasons)}"


@dataclass(slots=True)
class Tuner:
    bounds: Bounds
    steps: deque[StepFacts] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _wanted: Pace | None = None
    _agreed: int = 0

    def observe(self, facts: StepFacts) -> Decision:
        """What is best by the last steps."""
        self.steps.append(facts)
        measured = measure(self.steps, self.bounds)
        advice = recommend(
            measured,
            alpha=None if self.bounds.alpha > 0 else 0.0,
            waits_for_oldest=self.bounds.order == "opened",
        )
        pace = self.bounds.clamp(advice)
        self._agreed = self._agreed + 1 if pace == self._wanted else 1
        self._wanted = pace
        return Decision(advice, pace, measured.workers)

    @property
    def certain(self) -> bool:
        """Whether the last decisions agree."""
        return self._agreed >= AGREE


def measure(steps: Iterable[StepFacts], bounds: Bounds) -> Measured:
    """Means over ``steps``, which must not be empty."""
    seen = list(steps)
    samples = sum(s.samples for s in seen)
    ended, voids = sum(s.ended for s in seen), sum(s.voids for s in seen)
    groups, filtered = sum(s.groups for s in seen), sum(s.filtered_groups for s in seen)
    return Measured(
        workers=bounds.engines + 1,
        samples=bounds.group_size * bounds.groups_per_batch,
        generate_s=sum(s.generate_s for s in seen) / samples,
        longest_s=statistics.fmean(s.longest_s for s in seen),
        train_s=sum(s.learner_s for s in seen) / samples / bounds.epochs,
        epochs=bounds.epochs,
        sync_s=statistics.fmean(s.sync_s for s in seen),
        groups=bounds.groups_per_batch,
        void_rate=voids / max(1, voids + ended),
        filtered_rate=filtered / max(1, filtered + groups),
        slow_rate=_slow_rate([env_s for s in seen for env_s in s.env_s]),
    )


def _slow_rate(env_s: Sequence[float]) -> float:
    if not env_s:
        return 0.0
    limit_s = SLOW * statistics.median(env_s)
    return sum(value > limit_s for value in env_s) / len(env_s) if limit_s > 0 else 0.0


def played_s(trajectory: Trajectory) -> float:
    """From the first turn to the last."""
    return sum(turn.generate_s + turn.env_s for turn in trajectory.turns)


def latency_s(trajectory: Trajectory) -> float:
    return sum(turn.env_s for turn in trajectory.turns) / max(1, len(trajectory.turns))
