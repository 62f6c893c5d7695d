"""Another engine in the place of one that died: how often, and with which weights. [ours]

Invariants: never more than ``restarts`` replacements within ``WINDOW_S``, whatever dies; a new engine is handed out
only once it samples with the newest weights, also when they change while it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from roll_core.engines.base import Engine
from roll_core.errors import EngineDead
from roll_core.types import Weights

WINDOW_S = 600.0
"""Longer than any engine takes to start and die again, shorter than the time between accidents of hardware."""

Make = Callable[[int, Weights], Engine]
"""A new engine for this place, with these weights; called in a thread, for large weights take a while."""


@dataclass(slots=True)
class Renewal:
    make: Make
    weights: Weights
    """The newest that were published."""
    restarts: int
    _spent_s: deque[float] = field(default_factory=deque)

    def allowed(self, now_s: float) -> bool:
        """Whether one more may be replaced; if so, it counts."""
        while self._spent_s and now_s - self._spent_s[0] > WINDOW_S:
            self._spent_s.popleft()
        if len(self._spent_s) >= self.restarts:
            return False
        self._spent_s.append(now_s)
        return True

    async def replace(self, index: int, old: Engine) -> Engine:
        """A started engine with the newest weights. Raises EngineDead when that, too, cannot be had."""
        with contextlib.suppress(EngineDead):
            await old.close()  # its memory, or its device, is needed
        weights = self.weights
        try:
            engine = await asyncio.to_thread(self.make, index, weights)
            await engine.start()
        except Exception as error:
            raise EngineDead(f"engine {index} died and cannot be replaced: {error!r}") from error
        try:
            while weights is not self.weights:
                weights = self.weights
                await engine.load_weights(weights)
        except BaseException:
            await engine.close()
            raise
        return engine
