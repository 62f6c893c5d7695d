"""Notices when engine and learner drift apart, before the reward does.

A mismatch that grows is the early sign of a run that will collapse, and a mismatch on fresh tokens that was never small
is a defect: a temperature that only one side knows, weights that did not arrive, a kernel that rounds otherwise. Both
look like bad luck in the reward.

Invariants: pure, fed with metrics, no clock; an alarm is raised after ``patience`` steps in a row beyond its limit and
cleared after as many within half of it, so that a value at the limit does not flicker; a step without the metric (no
token of that lag) changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from roll_core.config import Recipe


@dataclass(frozen=True, slots=True)
class Line:
    """One thing watched: ``metric``'s distance from ``good``, its value in a perfect run, may reach ``limit``."""

    metric: str
    good: float
    limit: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A change worth telling. ``raised``: an alarm; else its end."""

    metric: str
    raised: bool
    text: str


def lines(kl_limit: float, ess_limit: float) -> tuple[Line, ...]:
    """What the trainer watches. ``kl_limit``: k3 at lag 0, nats per token. ``ess_limit``: least sample share."""
    return (
        Line(
            "mismatch/k3_at_0",
            0.0,
            kl_limit,
            "engine and learner disagree about tokens of the same weights: compare temperature, precision and chat "
            "template, and that weights arrive; algorithm.correction holds it off meanwhile",
        ),
        Line(
            "mismatch/ess",
            1.0,
            1.0 - ess_limit,
            "the batch is far from the policy that learns from it: lower rollout.alpha or learner.lr, or set "
            "algorithm.correction",
        ),
    )


def drift_detector(recipe: Recipe) -> DriftDetector:
    """With the recipe's limits."""
    algorithm = recipe.algorithm
    watched = lines(algorithm.mismatch_kl, algorithm.mismatch_ess)
    return DriftDetector(watched, patience=algorithm.mismatch_patience)


class DriftDetector:
    """Hysteresis over ``watched``. Alarms of one do not depend on the others."""

    def __init__(self, watched: tuple[Line, ...], *, patience: int = 3, clear_share: float = 0.5) -> None:
        """``clear_share``: the part of the limit that a value must stay within for an alarm to end."""
        if patience < 1 or not 0 < clear_share <= 1:
            raise ValueError(f"patience={patience} must be at least 1 and clear_share={clear_share} in (0, 1]")
        self._watched = watched
        self._patience = patience
        self._clear_share = clear_share
        self._streak = dict.fromkeys((line.metric for line in watched), 0)
        self._raised: set[str] = set()

    @property
    def raised(self) -> frozenset[str]:
        """The metrics in alarm."""
        return frozenset(self._raised)

    def observe(self, values: Mapping[str, float]) -> list[Notice]:
        """One step's metrics; what has changed by them. A value that is not a number counts as beyond the limit."""
        notices = []
        for line in self._watched:
            if line.metric in values and (notice := self._observe(line, values[line.metric])) is not None:
                notices.append(notice)
        return notices

    def _observe(self, line: Line, value: float) -> Notice | None:
        name, distance = line.metric, abs(value - line.good)
        beyond = not distance <= line.limit  # true for NaN
        turning = distance < self._clear_share * line.limit if name in self._raised else beyond
        self._streak[name] = self._streak[name] + 1 if turning else 0
        if self._streak[name] < self._patience:
            return None
        self._streak[name] = 0
        steps = f"{self._patience} steps" if self._patience > 1 else "1 step"
        if name in self._raised:
            self._raised.discard(name)
            return Notice(name, False, f"{name} is {value:.3g}, well within its limit for {steps}.")
        self._raised.add(name)
        limit = line.good + line.limit if line.good <= 0 else line.good - line.limit
        return Notice(name, True, f"{name} is {value:.3g}, beyond {limit:.3g} for {steps}: {line.meaning}.")
