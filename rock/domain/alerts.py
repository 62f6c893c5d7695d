"""When a measured quantity wants somebody's attention: rules with objectives and error budgets. Pure, clocked.

A rule watches one metric by one of four kinds:

- ``above`` / ``below``: a sample beyond ``threshold`` is bad. The alert fires when more than ``budget`` of the last
  ``window`` samples are bad (the error budget is spent), and clears when at most half of the budget is. A budget of 0
  over a window of 1 is the plain threshold;
- ``drop``: the mean of the last ``window`` samples fell below ``threshold`` times the best mean of any ``window``
  samples before (a reward that collapsed). Clears when it is back above half-way between the two;
- ``silent``: no sample came for ``threshold`` seconds (no progress). Clears with the next one.

Invariants: an alert fires once and clears once, however often its condition is seen; nothing fires before ``window``
samples were seen; NaN and infinity are bad samples, never ignored; memory is ``window`` samples a rule.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Kind = Literal["above", "below", "drop", "silent"]


class Action(StrEnum):
    """What is done when an alert fires, beside being recorded."""

    NOTIFY = "notify"
    PAUSE = "pause"
    """The run stops before the data in question is trained on, keeps what it has, and waits for a person."""
    STOP = "stop"
    """The run ends, with a checkpoint."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``threshold`` has the metric's unit; for ``drop`` it is a share of the best, for ``silent`` seconds."""

    name: str
    metric: str
    kind: Kind
    threshold: float
    window: int = 1
    """Samples looked at."""
    budget: float = 0.0
    """Share of them that may be bad."""
    action: Action = Action.NOTIFY

    def __post_init__(self) -> None:
        if not self.name or not self.metric:
            raise ValueError(f"an alert needs a name and a metric, got name={self.name!r}, metric={self.metric!r}")
        if self.kind not in ("above", "below", "drop", "silent"):
            raise ValueError(f"alert {self.name}: kind {self.kind!r} is none of above, below, drop, silent")
        if self.window < 1 or not 0 <= self.budget < 1:
            raise ValueError(
                f"alert {self.name}: expected window >= 1 and 0 <= budget < 1, got {self.window} and {self.budget}"
            )
        if math.isnan(self.threshold) or (self.kind == "drop" and not 0 < self.threshold < 1):
            raise ValueError(f"alert {self.name}: threshold {self.threshold} does not suit kind {self.kind!r}")
        if self.kind == "silent" and self.threshold <= 0:
            raise ValueError(f"alert {self.name}: silent needs seconds above 0, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class Change:
    """An alert fired, or cleared (``firing`` false). ``reason`` is a sentence with the numbers that decided."""

    rule: Rule
    firing: bool
    at_s: float
    value: float
    reason: str


@dataclass(slots=True)
class _State:
    samples: deque[float]
    heard_at_s: float
    firing: bool = False
    best: float = -math.inf


@dataclass(slots=True)
class AlertBook:
    """The rules of one run, or of one platform, and which of them fire."""

    rules: tuple[Rule, ...]
    now_s: float
    """When it was opened: silence counts from here."""
    _states: dict[str, _State] = field(init=False)

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"alerts need different names; twice or more: {', '.join(twice)}")
        self._states = {rule.name: _State(deque(maxlen=rule.window), self.now_s) for rule in self.rules}

    @property
    def firing(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if self._states[rule.name].firing)

    def observe(self, values: Mapping[str, float], now_s: float) -> list[Change]:
        """One sample of each metric in ``values``; metrics without a rule are ignored."""
        changes: list[Change] = []
        for rule in self.rules:
            if rule.metric in values:
                changes += self._sample(rule, float(values[rule.metric]), now_s)
        return changes

    def tick(self, now_s: float) -> list[Change]:
        """Whatever time alone decides: silence."""
        changes: list[Change] = []
        for rule in self.rules:
            state = self._states[rule.name]
            if rule.kind == "silent" and now_s - state.heard_at_s > rule.threshold:
                quiet_s = now_s - state.heard_at_s
                reason = f"no {rule.metric} for {quiet_s:.0f} s, the limit is {rule.threshold:g} s"
                changes += self._turn(rule, True, now_s, quiet_s, reason)
        return changes

    def _sample(self, rule: Rule, value: float, now_s: float) -> Iterable[Change]:
        state = self._states[rule.name]
        state.heard_at_s = now_s
        if rule.kind == "silent":
            return self._turn(rule, False, now_s, value, f"{rule.metric} is heard of again")
        state.samples.append(value)
        if len(state.samples) < rule.window:
            return []
        return self._dropped(rule, state, now_s) if rule.kind == "drop" else self._beyond(rule, state, now_s)

    def _beyond(self, rule: Rule, state: _State, now_s: float) -> Iterable[Change]:
        bad = sum(_is_bad(rule, sample) for sample in state.samples)
        share, last = bad / len(state.samples), state.samples[-1]
        reason = (
            f"{rule.metric} is {last:g}, {rule.kind} {rule.threshold:g} in {bad} of the last {len(state.samples)} "
            f"samples; {rule.budget:.0%} may be"
        )
        if share > rule.budget:
            return self._turn(rule, True, now_s, last, reason)
        return self._turn(rule, False, now_s, last, reason) if share <= rule.budget / 2 else []

    def _dropped(self, rule: Rule, state: _State, now_s: float) -> Iterable[Change]:
        mean = sum(state.samples) / len(state.samples)
        best, state.best = state.best, max(state.best, mean if math.isfinite(mean) else -math.inf)
        if best == -math.inf:
            return []
        # A best at or below 0 has no share to fall to: only positive quantities collapse.
        floor, back = rule.threshold * best, (1 + rule.threshold) / 2 * best
        reason = f"{rule.metric} is {mean:g} over {len(state.samples)} samples, its best was {best:g}"
        if best > 0 and not mean >= floor:
            return self._turn(rule, True, now_s, mean, reason)
        return self._turn(rule, False, now_s, mean, reason) if mean >= back else []

    def _turn(self, rule: Rule, firing: bool, now_s: float, value: float, reason: str) -> list[Change]:
        state = self._states[rule.name]
        if state.firing == firing:
            return []
        state.firing = firing
        return [Change(rule, firing, now_s, value, reason)]


def _is_bad(rule: Rule, sample: float) -> bool:
    if not math.isfinite(sample):
        return True
    return sample > rule.threshold if rule.kind == "above" else sample < rule.threshold
