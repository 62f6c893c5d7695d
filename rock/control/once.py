"""Doing once what is asked twice: the same ``Idempotency-Key`` gets the same answer, also while the first asks still.

For clients that lost the answer, not for ever: an answer is kept ``KEEP_S``, and not over a restart. What failed was
not done, and is tried anew. What nobody wants any more can be withdrawn, also before it was asked for: the two come
over different connections, and the second may overtake the first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rock.domain.clock import Clock
from rock.domain.errors import Conflict

T = TypeVar("T")
KEEP_S = 600.0
_KEEP = 10_000


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    what: object
    answer: asyncio.Future[T]
    at: float


class Once(Generic[T]):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()

    async def do(self, who: str, key: str, what: object, work: Callable[[], Awaitable[T]]) -> T:
        """``work``'s result, or that of the earlier call with this key. ``what`` must be the same then.

        Raises Conflict (the key was used for something else, or what it asked for was withdrawn), and what ``work``
        raises.
        """
        self._forget()
        entry = self._entries.get((who, key))
        if entry is None:
            # A task of its own: who asks again must not lose the answer because who asked first has hung up.
            task = asyncio.ensure_future(_run(work))
            entry = self._entries[who, key] = _Entry(what, task, self._clock.now())
            task.add_done_callback(lambda done: self._drop_failed((who, key), done))
        elif entry.answer.cancelled():
            raise _withdrawn(key)
        elif entry.what != what:
            raise Conflict(f"Idempotency-Key {key!r} was used for another request", hint="Use a new one for each.")
        try:
            return await asyncio.shield(entry.answer)
        except asyncio.CancelledError:
            if entry.answer.cancelled():
                raise _withdrawn(key) from None
            raise  # who asks was cancelled; the work goes on

    async def withdraw(self, who: str, key: str) -> T | None:
        """End the work under this key, also what may yet be asked; its result if it is done already, which is the
        caller's to undo."""
        self._forget()
        entry = self._entries.pop((who, key), None)
        never: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        never.cancel()
        self._entries[who, key] = _Entry(None, never, self._clock.now())
        if entry is None:
            return None
        entry.answer.cancel()
        await asyncio.wait({entry.answer})
        if entry.answer.cancelled() or entry.answer.exception() is not None:
            return None
        return entry.answer.result()

    def _drop_failed(self, place: tuple[str, str], done: asyncio.Future[T]) -> None:
        failed = done.cancelled() or done.exception() is not None
        if failed and (entry := self._entries.get(place)) is not None and entry.answer is done:
            del self._entries[place]

    def _forget(self) -> None:
        edge = self._clock.now() - KEEP_S
        while self._entries:
            entry = next(iter(self._entries.values()))
            if not entry.answer.done() or (entry.at > edge and len(self._entries) <= _KEEP):
                return
            self._entries.popitem(last=False)


def _withdrawn(key: str) -> Conflict:
    return Conflict(f"what was asked with Idempotency-Key {key!r} was withdrawn")


async def _run(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
