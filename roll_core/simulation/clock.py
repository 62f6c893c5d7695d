"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer instead of waiting.

Invariants: time never goes back; the same program takes the same steps in the same order (no threads, no sockets, no
wall clock); a program that waits for something no timer will bring is reported at once instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Everything waits and no timer is set: in production this would have been a hang."""


class _NoSockets(selectors.BaseSelector):
    """Stands where the loop would sleep in ``select``."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every coroutine waits and no timer is set")
        self.now_s += max(0.0, timeout)
        return []

    # The loop registers its own wake-up socket; nobody else may.
    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _NoSockets()
        super().__init__(self._virtual)
        # Sums of floats must not leave a timer a hair in the future: the loop would take an extra turn, no more.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("a thread does not know the virtual clock; simulate what it does with a timer")


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on a fresh virtual loop that starts at 0 s. Raises Deadlock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
