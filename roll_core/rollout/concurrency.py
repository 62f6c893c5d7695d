"""How many episodes to play at once, from what the engines measure: grow, trim, cut. Never a constant.

Episodes that wait for their environment leave room in the engine, so more of them are needed than it has slots; how
many more depends on lengths and latencies that change as the policy learns. Pure; readings and the clock are passed in.
Invariants: the limit stays within [floor, ceiling]; it never grows while requests queue beyond ``slack``, and never
shrinks while slots are empty; it grows only where it binds, so an idle phase does not inflate it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roll_core.engines.base import EngineStats


@dataclass(frozen=True, slots=True)
class ConcurrencySettings:
    floor: int = 1
    ceiling: int = 1 << 30
    fill: float = 1.0
    """Share of the engines' slots that should decode. Less trades throughput for the speed of each sequence."""
    slack: float = 0.05
    """Requests that may queue, as a share of the slots: enough that no slot stays empty between two readings."""
    cut: float = 0.5
    """Queued requests, as a share of the slots, from which the limit is corrected in one stroke."""
    settle_s: float = 2.0
    """Time after a change before its effect is judged: what was started must first reach the engine."""


@dataclass(slots=True)
class ConcurrencyController:
    settings: ConcurrencySettings
    limit: int
    _judge_from_s: float = -math.inf

    def update(self, now_s: float, engine: EngineStats, in_flight: int) -> int:
        """The limit from now on. ``in_flight``: episodes being played, those in their environment included."""
        wanted = engine.slots * self.settings.fill
        resident = engine.running + engine.waiting
        if now_s < self._judge_from_s or in_flight == 0 or resident == 0:
            return self.limit if resident else self._set(now_s, max(self.limit, math.ceil(wanted)))
        excess = resident - wanted * (1 + self.settings.slack)
        per_resident = in_flight / resident
        if excess > self.settings.cut * wanted:
            return self._set(now_s, math.floor(in_flight * wanted / resident))
        if excess > 0:
            return self._set(now_s, in_flight - math.ceil(excess * per_resident / 2))
        if resident < wanted and in_flight >= self.limit:
            return self._set(now_s, self.limit + math.ceil((wanted - resident) * min(per_resident, 8.0) / 2))
        return self.limit

    def _set(self, now_s: float, limit: int) -> int:
        limit = max(self.settings.floor, min(self.settings.ceiling, limit))
        if limit != self.limit:
            self.limit = limit
            self._judge_from_s = now_s + self.settings.settle_s
        return self.limit
