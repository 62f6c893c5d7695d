"""Every wait has a name and a deadline: what should come and does not ends the run with a clear word, never a hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from roll_core.errors import NoProgress

T = TypeVar("T")


async def within(name: str, wait: Awaitable[T], deadline_s: float, state: Callable[[], str]) -> T:
    """``wait``'s result. Raises NoProgress, with ``state()`` of everything that could have ended it."""
    try:
        async with asyncio.timeout(deadline_s) as scope:
            return await wait
    except TimeoutError as error:
        if not scope.expired():
            raise  # a time-out of the awaited thing itself
        raise NoProgress(f"Nothing came of {name} for {deadline_s:g} s. {state()}") from error


class Watch:
    """A wait that shows progress on its way: the deadline counts from the last sign of it."""

    def __init__(self, name: str, deadline_s: float, state: Callable[[], str]) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._scope: asyncio.Timeout | None = None

    def progressed(self) -> None:
        """May be called from any thread."""
        self._loop.call_soon_threadsafe(self._extend)

    async def over(self, wait: Awaitable[T]) -> T:
        """``wait``'s result. Raises NoProgress like :func:`within`."""
        try:
            async with asyncio.timeout(self._deadline_s) as self._scope:
                return await wait
        except TimeoutError as error:
            if self._scope is None or not self._scope.expired():
                raise
            raise NoProgress(f"Nothing came of {self._name} for {self._deadline_s:g} s. {self._state()}") from error
        finally:
            self._scope = None

    def _extend(self) -> None:
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(self._loop.time() + self._deadline_s)
