"""The core of the loop, shared by training and simulation: learn from a batch, publish its weights behind it.

Weights travel to the engines while the learner already works on the next batch; what they carry is a copy. Invariants:
weights reach the engines in the order of their versions; no episode is initiated by a version before every engine
samples with it; a publication that fails, or takes longer than its deadline, stops rollout with its own error, wherever
the loop happens to wait. With α = 0 nothing may start before the publication has ended, so the overlap changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from roll_core.engines.base import Engine
from roll_core.rollout.clock import now_s
from roll_core.rollout.scheduler import CLOSE_S, Scheduler
from roll_core.training.watchdog import within
from roll_core.types import Group, Weights

Learn = Callable[[tuple[Group, ...]], Awaitable[tuple[dict[str, float], Weights]]]
"""All updates on one batch; the metrics, and a copy of the weights of the version they made."""


@dataclass(frozen=True, slots=True)
class Learned:
    values: dict[str, float]
    learner_s: float
    publish_wait_s: float
    """How long the learner waited for the publication before this one."""


class Pipeline:
    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        learn: Learn,
        *,
        step_deadline_s: float,
        state: Callable[[], str],
        on_published: Callable[[int], None] = lambda version: None,
    ) -> None:
        """``state`` describes everything, for the message of a wait that exceeds its deadline. ``on_published`` is told
        the version that every engine samples with from now on."""
        self._scheduler = scheduler
        self._engine = engine
        self._learn = learn
        self._deadline_s = step_deadline_s
        self._state = state
        self._on_published = on_published
        self._publishing: asyncio.Task[None] | None = None
        self.learning = False
        """True while learner and machine are a step apart: no state may be saved then."""

    async def train_on(self, groups: tuple[Group, ...]) -> Learned:
        started_s = now_s()
        self.learning = True
        values, weights = await within("the learner's step", self._learn(groups), self._deadline_s, self._state)
        learned_s = now_s()
        await self.settled()
        self._scheduler.carry_out(self._scheduler.machine.trained(groups))
        self.learning = False  # from here to the return nothing may be awaited: whoever saves counts on it
        self._publishing = asyncio.get_running_loop().create_task(self._publish(weights), name="publish weights")
        self._publishing.add_done_callback(self._published)
        return Learned(values, learned_s - started_s, now_s() - learned_s)

    async def settled(self) -> None:
        """Wait until the engines sample with the newest weights."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)

    async def close(self) -> None:
        """End a publication under way. What it would have raised has reached the scheduler already, or is moot."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait([self._publishing], timeout=CLOSE_S)

    async def _publish(self, weights: Weights) -> None:
        loading = self._engine.load_weights(weights)
        await within("publishing weights to the engine", loading, self._deadline_s, self._state)
        self._on_published(weights.version)
        self._scheduler.published(weights.version)

    def _published(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._scheduler.fail(error)
