"""Several episodes, one after the other, in a sandbox that the trainer keeps.

A sandbox belongs to one lease and is never given to another; but its holder may reset the environment in it and play
again, where the environment's `reset` restores everything an action can change (text games; not a file system). That
spares a start of a container per episode, the largest cost of short ones. A session whose sandbox was lost and
replaced is as sound as before: only the episode being played was replayed in the other one.

Invariants: one episode at a time in a sandbox; one that ever raised, timed out or was cancelled within a call is never
played in again; none plays more than ``episodes`` times; all are given back by :meth:`ReusedSessions.close`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from roll_core.rollout.sessions import Session, SessionFactory, StepTuple

T = TypeVar("T")


class _Kept:
    """A session that remembers whether it may be trusted with another episode."""

    def __init__(self, session: Session, stack: AsyncExitStack) -> None:
        self._session = session
        self.stack = stack
        self.played = 0
        self.sound = True

    @property
    def sandbox_id(self) -> str:
        return self._session.sandbox_id

    @property
    def recoveries(self) -> Sequence[Any]:
        return getattr(self._session, "recoveries", ())

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return await self._watch(self._session.reset(task, seed, options))

    async def step(self, action: Any) -> StepTuple:
        return await self._watch(self._session.step(action))

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        return await self._watch(self._session.call(method, timeout_s=timeout_s, **args))

    async def _watch(self, work: Awaitable[T]) -> T:
        """Unsound until ``work`` has returned: that covers errors and cancellation alike."""
        self.sound = False
        result = await work
        self.sound = True
        return result


class ReusedSessions:
    """A :class:`SessionFactory` over another one; each of its sessions plays up to ``episodes`` episodes."""

    def __init__(self, inner: SessionFactory, episodes: int) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: a sandbox plays at least one episode")
        self._inner = inner
        self._episodes = episodes
        self._idle: deque[_Kept] = deque()
        self._closed = False

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        kept = self._idle.pop() if self._idle else await self._fresh(task, seed)
        kept.played += 1
        try:
            yield kept
        finally:
            if kept.sound and kept.played < self._episodes and not self._closed:
                self._idle.append(kept)
            else:
                await kept.stack.aclose()

    async def _fresh(self, task: str, seed: int) -> _Kept:
        stack = AsyncExitStack()
        return _Kept(await stack.enter_async_context(self._inner.open(task, seed)), stack)

    async def tasks(self, split: str) -> Sequence[str]:
        return await self._inner.tasks(split)

    async def digest(self) -> str:
        return await self._inner.digest()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().stack.aclose()
        await self._inner.close()
