"""One daemon thread for the learner's work: the event loop never blocks, and a hanging step never blocks the exit.

Invariants: who waits for a function hears of its end, also of that of the thread itself; the interpreter does not end
under work that takes less than ``CLOSE_S`` to its next :meth:`Worker.go_on`. Python ends a daemon thread where it asks
for the lock, and torch's C++ beneath it does not survive that: the process aborts, after all was saved and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from roll_core.errors import LearnerFailed

T = TypeVar("T")

CLOSE_S = 10.0
"""A person who pressed Ctrl-C waits this long at most for work that nobody wants any more."""


@dataclass(frozen=True, slots=True)
class _Job:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    work: Callable[[], Any]

    def run(self) -> None:
        try:
            value = self.work()
        except SystemExit as error:  # what ends a thread must not end the loop that waits for it
            self.fail(LearnerFailed(f"What ran in the learner's thread ended it: {error!r}."))
        except BaseException as error:  # noqa: BLE001 - handed over to whoever waits
            self.fail(error)
        else:
            self._settle(self.future.set_result, value)

    def fail(self, error: BaseException) -> None:
        self._settle(self.future.set_exception, error)

    def _settle(self, set_it: Callable[[Any], None], value: Any) -> None:
        def settle() -> None:
            if not self.future.done():
                set_it(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(settle)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads here; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)


class Worker:
    """Runs functions one after the other, in order, always in the same thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Raises what ``function`` raises; LearnerFailed when the thread has ended."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(loop, future, lambda: function(*args)))
        if self._ended.is_set():  # after the put: a job is run, or refused by the thread's end, or refused here
            self._refuse_all()
        return await future

    def go_on(self) -> None:
        """Long work calls it between its parts. Raises LearnerFailed once nobody wants its result any more."""
        if self._closing:
            raise LearnerFailed(f"The thread {self._name!r} is being closed: its work is given up.")

    async def close(self) -> None:
        """What runs is given up at its next :meth:`go_on`, or finished; waits ``CLOSE_S`` for that."""
        self._closing = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_S)

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job.run()
        finally:
            self._ended.set()
            self._refuse_all()

    def _refuse_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.fail(LearnerFailed(f"The thread {self._name!r} has ended: nothing is run in it any more."))
