"""An event loop in a thread of its own, for callers that have none. Ctrl-C cancels what they wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

# How long a cancelled call may take to release what it holds before Ctrl-C wins over it.
_CANCEL_WAIT_S = 8.0


class _LoopThread:
    """An event loop in a daemon thread, and a way to wait for coroutines on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rock-sdk", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. An interrupt of the waiting thread cancels it and waits for its clean-up."""
        result: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _settle(task, result))

        def cancel() -> None:
            if tasks:
                tasks[0].cancel()
            else:  # interrupted before it was handed over
                coroutine.close()
                result.cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            return result.result()
        except BaseException:
            if not result.done():
                self._loop.call_soon_threadsafe(cancel)
                wait([result], timeout=_CANCEL_WAIT_S)
            raise

    @property
    def stopped(self) -> bool:
        return self._loop.is_closed() or not self._thread.is_alive()

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_CANCEL_WAIT_S)
        if not self._thread.is_alive():
            self._loop.close()


def _settle(task: asyncio.Task[T], result: Future[T]) -> None:
    if task.cancelled():
        result.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
