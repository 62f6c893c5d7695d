"""Processes that hold one thing together, such as the shards of a model: all get the same calls, in the same order.

Invariants: a call returns what every rank returned, or raises LearnerDead; whichever rank fails, all are ended at once
(the others would wait for it in a collective for ever) and the group stays dead; the processes end with the one that
started them, also when that is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from roll_core.errors import LearnerDead

_START_S = 300.0
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of the processes this is, and where it computes."""

    index: int
    count: int
    device: str
    """``cpu``, or ``cuda:i`` with i the rank's own."""


Make = Callable[[Rank], Any]
"""What a rank holds; called in its process, with ``torch.distributed`` ready. Has to be picklable."""


def rank_device(device: str, index: int) -> str:
    """``cuda`` and ``cuda:i`` mean the GPUs from i (0) on, one a rank; anything else is shared by all."""
    kind, _, first = device.partition(":")
    return f"cuda:{int(first or 0) + index}" if kind == "cuda" else device


class RankGroup:
    """``count`` processes on this machine, joined by gloo, or by NCCL where ``device`` is ``cuda``."""

    def __init__(self, make: Make, count: int, *, device: str = "cpu", threads: int = 0) -> None:
        """Blocks until every rank has made its part. ``threads`` of torch in each; 0: torch's own choice.

        Raises LearnerDead with what the first rank to fail said.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="rock-ranks-"))
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        self._dead = ""
        context = multiprocessing.get_context("spawn")
        try:
            for index in range(count):
                mine, theirs = context.Pipe()
                rank = Rank(index, count, rank_device(device, index))
                process = context.Process(
                    target=_serve,
                    args=(theirs, make, rank, str(self._folder / "rendezvous"), threads),
                    name=f"rank {index}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._ranks.append((process, mine))
            self._gather("start", _START_S)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process, _ in self._ranks]

    def call(self, method: str, *args: Any) -> list[Any]:
        """What ``method`` returned, rank by rank. Raises LearnerDead when one raised or ended; the group is over then.

        Arguments and results travel by value; large ones are better left in a file of shared memory.
        """
        if self._dead:
            raise LearnerDead(self._dead)
        message = pickle.dumps((method, args), protocol=pickle.HIGHEST_PROTOCOL)
        for _, connection in self._ranks:
            with contextlib.suppress(OSError):  # whoever ended is noticed by _gather
                connection.send_bytes(message)
        return self._gather(method, None)

    def _gather(self, what: str, timeout_s: float | None) -> list[Any]:
        found: dict[int, Any] = {}
        waiting: dict[Any, int] = {connection: i for i, (_, connection) in enumerate(self._ranks)}
        while waiting:
            ready = wait(list(waiting), timeout_s)
            if not ready:
                self._fail(f"The learner's ranks {sorted(waiting.values())} did not {what} within {timeout_s:g} s.")
            for connection in ready:
                index = waiting.pop(connection)
                try:
                    fine, value = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, OSError):
                    self._fail(f"Rank {index} of the learner ended in {what!r} ({self._exit(index)}).")
                if not fine:
                    self._fail(f"Rank {index} of the learner failed in {what!r}: {value}")
                found[index] = value
        return [found[i] for i in range(len(self._ranks))]

    def _exit(self, index: int) -> str:
        process = self._ranks[index][0]
        process.join(_GRACE_S)
        return f"exit code {process.exitcode}"

    def _fail(self, text: str) -> None:
        self._dead = text
        self.close()
        raise LearnerDead(text)

    def close(self) -> None:
        """End every rank. May be called again."""
        self._dead = self._dead or "The learner's processes were closed."
        for process, connection in self._ranks:
            connection.close()
            process.kill()  # in the middle of a collective it would hear of nothing else
        for process, _ in self._ranks:
            process.join(_GRACE_S)
        shutil.rmtree(self._folder, ignore_errors=True)


def _serve(connection: Connection, make: Make, rank: Rank, rendezvous: str, threads: int) -> None:
    """What a rank's process does: make its part, then answer calls until nobody is there to call."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        torch.set_num_threads(threads)
    try:
        _join(rank, rendezvous)
        held = make(rank)
        connection.send_bytes(pickle.dumps((True, None)))
        while True:
            method, args = pickle.loads(connection.recv_bytes())
            connection.send_bytes(pickle.dumps((True, getattr(held, method)(*args))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:  # noqa: BLE001 - handed over to whoever called
        said = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            connection.send_bytes(pickle.dumps((False, f"{error!r}\n{said}")))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # in the middle of a collective nothing else would end this process
    os._exit(1)


def _join(rank: Rank, rendezvous: str) -> None:
    cuda = rank.device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(rank.device)
    elif "GLOO_SOCKET_IFNAME" not in os.environ:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank.index,
        world_size=rank.count,
        timeout=timedelta(seconds=1800),
    )
