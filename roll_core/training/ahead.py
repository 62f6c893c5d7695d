"""Attention rhythm off the critical path: finished groups are read while the learner waits for the rest of its batch.

Invariants: nothing is read while the learner learns, so what is read is of the policy that the batch is trained at,
and reading the batch as a whole comes to the very same; the learner, when its batch is there, waits for one group's
reading at most; an error of a reading is raised to whoever waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from roll_core.config.algorithm import Algorithm
from roll_core.learners.actor_attn import AttentionReader
from roll_core.training.batches import make_batch
from roll_core.training.credit_flow import advantages
from roll_core.training.worker import Worker, torch_threads
from roll_core.types import Group, TrainBatch


class ReadingAhead:
    def __init__(
        self,
        algorithm: Algorithm,
        reader: AttentionReader,
        worker: Worker,
        finished: Callable[[], Sequence[Group]],
        threads: Callable[[], int],
    ) -> None:
        """``worker``: the learner's thread. ``finished``: the groups that wait for a batch. ``threads``: of torch, as
        in a learner step."""
        self._algorithm, self._reader, self._worker = algorithm, reader, worker
        self._finished, self._threads = finished, threads
        self._news = asyncio.Event()
        self._spent_s = 0.0

    def look(self) -> None:
        """An episode has ended: a group may be complete."""
        self._news.set()

    def step_ended(self) -> dict[str, float]:
        """``rhythm/…``: seconds of reading while the learner waited, and the share of the batch's groups found read."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return {"rhythm/ahead_s": spent_s, "rhythm/ahead_share": self._reader.ahead_share}

    @contextlib.asynccontextmanager
    async def while_waiting(self) -> AsyncIterator[None]:
        """Reads in the background of the body."""
        task = asyncio.get_running_loop().create_task(self._read(), name="read attention ahead")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _read(self) -> None:
        done: set[str] = set()
        while True:
            self._news.clear()
            group = next((g for g in self._finished() if g.id not in done), None)
            if group is None:
                await self._news.wait()
                continue
            done.add(group.id)
            await self._worker.run(self._read_one, group)

    def _read_one(self, group: Group) -> None:
        """In the learner's thread."""
        began_s = time.perf_counter()
        with torch_threads(self._threads()):
            self._reader.read_ahead(self._alone(group))
        self._spent_s += time.perf_counter() - began_s

    def _alone(self, group: Group) -> TrainBatch:
        """With advantages as far as the group alone tells which of its rows will have one; else 0 in all of them."""
        batch = make_batch([group])
        if self._algorithm.advantage != "gae" and self._algorithm.normalise == "none":
            batch.advantages_BT = advantages(self._algorithm, batch, [group], None)
        return batch
