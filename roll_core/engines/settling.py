"""Futures of event loops, resolved from another thread: each once, whether or not anybody still waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

Settled = tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Any]


def settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], outcome: T | BaseException) -> None:
    """Resolve one; its loop may have been closed meanwhile."""
    settle_all([(loop, future, outcome)])


def settle_all(settled: Sequence[Settled]) -> None:
    """One wake-up for all of a loop: each hands it the interpreter, and the engine's thread waits to get that back."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Settled]] = {}
    for one in settled:
        by_loop.setdefault(one[0], []).append(one)
    for loop, mine in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, mine)


class Mailbox:
    """From one thread to one loop, at once, but with one wake-up for all that comes before the loop looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._settled: deque[Settled] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[Any], outcome: Any) -> None:
        self._settled.append((self.loop, future, outcome))
        if not self._woken:  # else the loop has yet to look, and will find it
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._woken = False  # first: what is put from here on wakes the loop again
        while self._settled:
            _resolve([self._settled.popleft()])


def _resolve(settled: Sequence[Settled]) -> None:
    for _, future, outcome in settled:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
