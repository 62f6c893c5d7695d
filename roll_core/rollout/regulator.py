"""Keeps the engines full: every second it measures their pressure and sets how many episodes are played at once.

The edge around :class:`~roll_core.rollout.concurrency.ConcurrencyController`, which decides.
"""

from __future__ import annotations

import asyncio

from roll_core.engines.base import Engine
from roll_core.rollout.clock import now_s
from roll_core.rollout.concurrency import ConcurrencyController
from roll_core.rollout.scheduler import Scheduler, Slots


class Regulator:
    def __init__(
        self,
        controller: ConcurrencyController,
        engine: Engine,
        scheduler: Scheduler,
        slots: Slots,
        *,
        every_s: float = 1.0,
    ) -> None:
        self._controller = controller
        self._engine = engine
        self._scheduler = scheduler
        self._slots = slots
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.adjust()
            await asyncio.sleep(self._every_s)

    def adjust(self) -> None:
        limit = self._controller.update(now_s(), self._engine.stats(), self._scheduler.running)
        if limit != self._slots.total:
            self._slots.resize(limit)
            self._scheduler.fill()
