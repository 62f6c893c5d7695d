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
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> tuple[str, ...]:
        order = list(self._tasks)
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return tuple(order)

    def take(self) -> tuple[str, int]:
        """The next task and the environment seed to play it with."""
        epoch, index = divmod(self.position, len(self._tasks))
        seed = random.Random(f"{self._seed}/env/{self.position}").getrandbits(31)
        self.position += 1
        return self._order(epoch)[index], seed
