"""The order of training tasks: every task once per pass, each pass shuffled anew, all of it fixed by one seed.

The position is a single number, so a checkpoint restores the data order exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache


class TaskQueue:
    def __init__(self, tasks: Sequence[str], seed: int, position: int = 0) -> None:
        if not tasks:
            raise ValueError("there are no tasks to train on")
        self._tasks = tuple(tasks)
        self._seed = seed
        self.position = position
        self._left_out: set[str] = set()
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> tuple[str, ...]:
        order = list(self._tasks)
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return tuple(order)

    def coming(self, count: int) -> tuple[str, ...]:
        """What :meth:`take` will return in its next ``count`` calls, each task once; nothing is taken by it."""
        positions = range(self.position, self.position + count)
        tasks = [self._order(position // len(self._tasks))[position % len(self._tasks)] for position in positions]
        return tuple(task for task in dict.fromkeys(tasks) if task not in self._left_out)

    def leave_out(self, task: str) -> None:
        """Pass it over from now on, unless that leaves none. Not part of the position: after a restart it is tried."""
        self._left_out.add(task)

    def take(self) -> tuple[str, int]:
        """The next task and the environment seed to play it with."""
        if self._left_out.issuperset(self._tasks):
            self._left_out.clear()
        while (taken := self._next())[0] in self._left_out:
            pass
        return taken

    def _next(self) -> tuple[str, int]:
        epoch, index = divmod(self.position, len(self._tasks))
        seed = random.Random(f"{self._seed}/env/{self.position}").getrandbits(31)
        self.position += 1
        return self._order(epoch)[index], seed
