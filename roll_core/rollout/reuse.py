"""Several episodes, one after the other, in a sandbox that the trainer keeps.

A sandbox belongs to one lease and is never given to another; but its holder may reset the environment in it and play
again, where the environment's `reset` restores everything an action can change (text games; not a file system). That
spares a start of a container per episode, the largest cost of short ones. A session whose sandbox was lost and
replaced is as sound as before: only the episode being played was replayed in the other one.

An episode that is given up is nearly always within a call: its environment is what it waits for. The episode ends at
once, the call is left to end behind it, and then the sandbox plays again; with redundancy there are many such. Who
needs a sandbox meanwhile waits for that one and starts no other.

Invariants: one episode at a time in a sandbox, and none before the last one's calls have ended; one that ever raised,
or whose cancelled call does not end within ``settle_s``, is never played in again; none plays more than ``episodes``
times; all are given back by :meth:`ReusedSessions.close`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from rock.domain.errors import RockError
from roll_core.rollout.sessions import Session, SessionFactory, StepTuple, look_ahead

log = logging.getLogger(__name__)
T = TypeVar("T")


class _Kept:
    """A session that remembers whether it may be trusted with another episode."""

    def __init__(self, session: Session, stack: AsyncExitStack) -> None:
        self._session = session
        self.stack = stack
        self.played = 0
        self.sound = True
        self._call: asyncio.Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call goes on whose caller is gone."""
        return self._call is not None and not self._call.done()

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
        call: asyncio.Future[T] = asyncio.ensure_future(work)
        self._call = call
        result = await asyncio.shield(call)
        self.sound = True
        return result

    async def settle(self, patience_s: float) -> None:
        """Wait for the call whose caller is gone; sound again if it ends well, and ended anyway."""
        if self._call is None or not self.busy:
            return
        await asyncio.wait([self._call], timeout=patience_s)
        self.end_call()
        await asyncio.wait([self._call])
        self.sound = not self._call.cancelled() and self._call.exception() is None

    def end_call(self) -> None:
        if self._call is not None:
            self._call.cancel()


class ReusedSessions:
    """A :class:`SessionFactory` over another one; each of its sessions plays up to ``episodes`` episodes."""

    def __init__(self, inner: SessionFactory, episodes: int, *, settle_s: float = 5.0) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes}: a sandbox plays at least one episode")
        self._inner = inner
        self._episodes = episodes
        self._settle_s = settle_s
        self._idle: deque[_Kept] = deque()
        self._settling: dict[asyncio.Task[None], _Kept] = {}
        self._waiting = 0
        self._closed = False

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        while not self._idle and self._waiting < len(self._settling):
            self._waiting += 1
            try:
                await asyncio.wait(self._settling, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._waiting -= 1
        kept = self._idle.pop() if self._idle else await self._fresh(task, seed)
        kept.played += 1
        try:
            yield kept
        finally:
            if kept.busy and self._plays_again(kept):
                settling = asyncio.get_running_loop().create_task(self._settle(kept), name="settle a sandbox")
                self._settling[settling] = kept
                settling.add_done_callback(self._settling.pop)
            else:
                await kept.settle(0.0)
                await self._put_back(kept)

    def _plays_again(self, kept: _Kept) -> bool:
        return kept.played < self._episodes and not self._closed

    async def _settle(self, kept: _Kept) -> None:
        await kept.settle(self._settle_s)
        try:
            await self._put_back(kept)
        except RockError as error:  # the lease ends by itself without our heartbeat
            log.info("sandbox %s was not given back in order: %s", kept.sandbox_id, error)

    async def _put_back(self, kept: _Kept) -> None:
        if kept.sound and self._plays_again(kept):
            self._idle.append(kept)
        else:
            await kept.stack.aclose()

    async def _fresh(self, task: str, seed: int) -> _Kept:
        stack = AsyncExitStack()
        return _Kept(await stack.enter_async_context(self._inner.open(task, seed)), stack)

    def coming(self, tasks: Sequence[str]) -> None:
        look_ahead(self._inner, tasks)

    async def tasks(self, split: str) -> Sequence[str]:
        return await self._inner.tasks(split)

    async def digest(self) -> str:
        return await self._inner.digest()

    async def close(self) -> None:
        self._closed = True
        for kept in self._settling.values():
            kept.end_call()
        if self._settling:
            await asyncio.wait(self._settling)
        while self._idle:
            await self._idle.pop().stack.aclose()
        await self._inner.close()
