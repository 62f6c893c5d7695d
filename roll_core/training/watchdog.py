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
