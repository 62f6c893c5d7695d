"""Where the workers' time of a run went, in worker-hours and in money. Pure: metrics in, shares out.

Invariant: the parts of :class:`Spent` add up to what was paid for: workers × seconds, of the steps that say where their
time went, and of the time between steps. A step that reports no bubble is not guessed at; ``Spent`` says how many did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from dashboard import text
from dashboard.palette import Tone

HOUR_S = 3600.0
CAUSES: dict[str, tuple[str, str]] = {
    "tail": ("tail", "waiting for the slowest episodes of a batch"),
    "environment": ("environment", "slots empty while episodes wait for a sandbox, reset, step or score"),
    "train_wait": ("train wait", "no new episodes, because they would be too stale"),
    "sync": ("weights", "generation held up while weights are loaded"),
    "redundancy": ("redundancy", "tokens nobody trained on: filtered, stale, void, cancelled"),
}
"""The trainer's ``bubble/NAME``: a name for people, and what it means."""
_PARTS: dict[str, tuple[str, str]] = {
    "batch_wait": ("wait for a batch", "the learner had no batch to train on"),
    "learner": ("learner", "the learner computed"),
    "publish_wait": ("weights", "the learner waited until weights were on their way"),
}
OUTSIDE = ("between steps", "warm start, evaluation, checkpoints, stops")
OUTSIDE_FROM = 0.01
"""Share below which the time between steps is not worth a row."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    meaning: str
    worker_s: float
    share: float
    tone: Tone


@dataclass(frozen=True, slots=True)
class Spent:
    """``parts`` from useful to the rest, the largest loss first."""

    parts: tuple[Part, ...]
    worker_s: float
    workers: float
    steps: int
    """Steps that said where their time went."""
    of_steps: int
    of_workers: bool
    """False: the run reports the learner's seconds only, no bubble."""

    @property
    def window(self) -> str:
        """What the parts are shares of, for people."""
        whose = f"{self.workers:.0f} workers: engines and learner" if self.of_workers else "the learner's time only"
        return f"{worker_hours(self.worker_s)}; {whose}; {self.steps:,} of {self.of_steps:,} steps tell"

    @property
    def useful(self) -> float:
        return sum(part.share for part in self.parts if part.tone is Tone.GOOD)


def spent(metrics: pd.DataFrame, created_at: datetime) -> Spent | None:
    """None where the run says nothing of its time. ``created_at``: the run's, from when its workers are paid for."""
    if "time/step_s" not in metrics.columns:
        return None
    if "bubble/total" in metrics.columns and "roofline/workers" in metrics.columns:
        return _of_workers(metrics, created_at)
    return _of_learner(metrics)


def _of_workers(metrics: pd.DataFrame, created_at: datetime) -> Spent:
    names = [name for name in CAUSES if f"bubble/{name}" in metrics.columns]
    needed = ["time/step_s", "roofline/workers", "bubble/total"]
    told = metrics.dropna(subset=needed)
    paid = told["time/step_s"] * told["roofline/workers"]
    rows = [("useful", "generating what was trained on, and training", float((paid * _useful(told)).sum()), Tone.GOOD)]
    losses = [(*CAUSES[name], float((paid * told[f"bubble/{name}"].fillna(0)).sum())) for name in names]
    workers = float(told["roofline/workers"].iloc[-1]) if len(told) else 0.0
    between_s = _between_s(metrics, created_at) * workers
    if between_s > OUTSIDE_FROM * (float(paid.sum()) + between_s):
        losses.append((*OUTSIDE, between_s))
    rows += [(*loss, Tone.VOID) for loss in sorted(losses, key=lambda loss: -loss[2])]
    return _spent(rows, workers, len(told), len(metrics), of_workers=True)


def _useful(told: pd.DataFrame) -> pd.Series:
    return (1.0 - told["bubble/total"]).clip(0.0, 1.0)


def _between_s(metrics: pd.DataFrame, created_at: datetime) -> float:
    """Seconds from the run's creation to its last step that were not in a step."""
    last = metrics["at"].dropna()
    if last.empty:
        return 0.0
    wall_s = (last.iloc[-1] - text.utc(created_at)).total_seconds()
    return max(0.0, float(wall_s) - float(metrics["time/step_s"].fillna(0).sum()))


def _of_learner(metrics: pd.DataFrame) -> Spent:
    step_s = metrics["time/step_s"].dropna()
    total_s = float(step_s.sum())
    rows = []
    for name, (label, meaning) in _PARTS.items():
        column = f"time/{name}_s"
        if column in metrics.columns:
            tone = Tone.GOOD if name == "learner" else Tone.VOID
            rows.append((label, meaning, float(metrics[column].fillna(0).sum()), tone))
    left_s = total_s - sum(row[2] for row in rows)
    if left_s > OUTSIDE_FROM * total_s:
        rows.append(("rest of the step", "not told apart by this run", left_s, Tone.NEUTRAL))
    rows.sort(key=lambda row: (row[3] is not Tone.GOOD, -row[2]))
    return _spent(rows, 1.0, len(step_s), len(metrics), of_workers=False)


def _spent(
    rows: list[tuple[str, str, float, Tone]], workers: float, steps: int, of_steps: int, *, of_workers: bool
) -> Spent:
    total_s = sum(row[2] for row in rows)
    parts = tuple(Part(name, why, s, s / total_s if total_s else 0.0, tone) for name, why, s, tone in rows)
    return Spent(parts, total_s, workers, steps, of_steps, of_workers)


@dataclass(frozen=True, slots=True)
class Price:
    """Of one worker for one hour."""

    per_hour: float
    unit: str = "$"

    def of(self, worker_s: float) -> str:
        """``2.40 $``; more than a hundred without cents."""
        cost = self.per_hour * worker_s / HOUR_S
        return f"{cost:,.0f} {self.unit}" if cost >= 100 else f"{cost:,.2f} {self.unit}"


_PRICE = re.compile(
    r"\s*(?P<before>[^\d\s.,]{0,4})\s*(?P<number>\d{1,7}(?:[.,]\d{1,4})?)\s*(?P<after>[^\d\s.,]{0,4})\s*"
)


def parse_price(said: str) -> Price | None:
    """``2.50``, ``2.5 EUR``, ``€2,50``; None for nothing. Raises ValueError naming what was expected."""
    if not said.strip():
        return None
    match = _PRICE.fullmatch(said)
    if match is None:
        raise ValueError(f"a price of {said!r}; expected a number and a unit, such as 2.50 EUR")
    unit = match["after"] or match["before"] or "$"
    return Price(float(match["number"].replace(",", ".")), unit)


def worker_hours(worker_s: float) -> str:
    """``3.2 worker-hours``; less than one in minutes."""
    if worker_s < HOUR_S:
        return f"{worker_s / 60:.1f} worker-minutes"
    return f"{worker_s / HOUR_S:,.1f} worker-hours"
