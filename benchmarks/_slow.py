"""Sandboxes whose steps take longer, as those of an environment that works: for measuring only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rock.sdk import Rock
from roll_core.config import Recipe
from roll_core.rollout.sessions import SdkSessions, Session, SessionFactory, StepTuple


@dataclass(frozen=True, slots=True)
class Latency:
    """max(0, N(mean, std)) seconds, added to every step."""

    mean_s: float
    std_s: float

    def draw(self, rng: random.Random) -> float:
        return max(0.0, rng.gauss(self.mean_s, self.std_s))


class SlowSessions:
    """A :class:`SessionFactory` over another one. Its steps are slow while ``on``, and not before or after."""

    def __init__(self, inner: SessionFactory, latency: Latency) -> None:
        self._inner = inner
        self._latency = latency
        self._rng = random.Random(0)
        self.on = False

    def seed(self, seed: int) -> None:
        """Whose turn it is to be slow is drawn anew, the same for the same seed in the same order of steps."""
        self._rng = random.Random(f"latency/{seed}")

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        async with self._inner.open(task, seed) as session:
            yield _Slow(session, self)

    async def wait(self) -> None:
        if self.on:
            await asyncio.sleep(self._latency.draw(self._rng))

    async def tasks(self, split: str) -> Sequence[str]:
        return await self._inner.tasks(split)

    async def digest(self) -> str:
        return await self._inner.digest()

    async def close(self) -> None:
        await self._inner.close()


class _Slow:
    def __init__(self, session: Session, sessions: SlowSessions) -> None:
        self._session = session
        self._sessions = sessions

    @property
    def sandbox_id(self) -> str:
        return self._session.sandbox_id

    @property
    def recoveries(self) -> Sequence[Any]:
        return getattr(self._session, "recoveries", ())

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return await self._session.reset(task, seed, options)

    async def step(self, action: Any) -> StepTuple:
        await self._sessions.wait()
        return await self._session.step(action)

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        return await self._session.call(method, timeout_s=timeout_s, **args)


def leases(rock: Rock, recipe: Recipe) -> SdkSessions:
    """Sandboxes of a platform, with the recipe's deadlines."""
    return SdkSessions(
        rock,
        recipe.env.name,
        run_id="",
        wait_s=recipe.platform.wait_s,
        ttl_s=recipe.platform.ttl_s,
        reset_s=recipe.rollout.reset_s,
        step_s=recipe.rollout.step_s,
        recovery_s=recipe.rollout.recovery_s,
    )
