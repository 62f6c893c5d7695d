"""How far a step is from the best these workers could do, and where the rest went. [ours; see papers on rooflines]

T* = N(μ_g + E·μ_t)/K + t_sync; efficiency η = T*/T; bubble = 1 − busy worker seconds/(K·T), split by cause. Pure.
Invariant: useful work, the bubble's causes and nothing else make up all worker seconds, so the shares sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class WorkerSeconds:
    """Where K·T worker seconds went."""

    useful: float = 0.0
    """Generating tokens that were trained on, at the cost of a full engine, and training."""
    tail: float = 0.0
    """Engines half empty, or a learner idle, because the last samples of a batch take long."""
    environment: float = 0.0
    """Slots empty while their episodes wait for an environment."""
    sync: float = 0.0
    """Generation suspended while weights are loaded."""
    train_wait: float = 0.0
    """Slots empty because admission waits for the learner: more would be stale."""
    redundancy: float = 0.0
    """Tokens that nobody trained on: filtered, stale, cancelled or void."""

    def __add__(self, other: WorkerSeconds) -> WorkerSeconds:
        return WorkerSeconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: WorkerSeconds) -> WorkerSeconds:
        return WorkerSeconds(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))

    def bubble(self) -> dict[str, float]:
        """Share of all worker seconds by cause; their sum is 1 − the useful share."""
        total = self.total or 1.0
        return {f.name: getattr(self, f.name) / total for f in fields(self) if f.name != "useful"}


def efficiency(ideal_step_s: float, step_s: float) -> float:
    """η = T*/T."""
    return ideal_step_s / step_s


def goodput(trained_tokens: int, generated_tokens: int) -> float:
    return trained_tokens / generated_tokens if generated_tokens else 1.0


def idle_cause(*, paused: bool, learning: bool, free_slots: int, in_environment: int) -> tuple[str, float]:
    """Why slots are empty now: the cause, and the share of them it explains; the rest is tail, or train wait while the
    learner works."""
    if paused:
        return "sync", 1.0
    if free_slots and in_environment:
        return "environment", min(1.0, in_environment / free_slots)
    return ("train_wait" if learning else "tail"), 1.0
