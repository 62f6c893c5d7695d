"""Ways for bytes from one process to others. A way knows nothing of weights; what it loses, the checksums notice.

| channel | reaches | receivers read |
|---|---|---|
| :class:`FolderChannel` in shared memory | processes of this machine | memory, mapped |
| :class:`FolderChannel` elsewhere | whoever mounts the folder | the file system |
| :class:`RayChannel` | every node of a Ray cluster | a copy per node, shared within it |
| :class:`~roll_core.weights.broadcast.BroadcastChannel` | the members of a group (NCCL or gloo) | their own copy |

Invariants: a ticket is small, can be pickled, and is all that a receiver needs; what it stands for does not change; the
newest ``keep`` can be had.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from roll_core.errors import WeightsTorn
from roll_core.weights.packet import Bytes

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "rock-weights-channel-"
_LOCK = "lock"
KEPT = 2
"""A slow receiver may still read the one before the newest."""


class Ticket(Protocol):
    def get(self) -> Bytes:
        """Raises WeightsTorn when it cannot be had (any more)."""
        ...


class Channel(Protocol):
    def put(self, packet: Bytes) -> Ticket:
        """Leave ``packet`` for the others."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class File:
    path: str

    def get(self) -> Bytes:
        try:
            found: Bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise WeightsTorn(f"the weights in {self.path} cannot be read: {error}") from error
        return found


class FolderChannel:
    """Files in a folder of its own, which goes with the channel, or with the next one when this process was killed."""

    def __init__(self, parent: Path | None = None, *, keep: int = KEPT) -> None:
        """``parent``: a directory that the receivers have under the same name. None: shared memory, of this machine
        alone."""
        if parent is None:
            parent = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(parent)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = (self._folder / _LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._keep = keep
        self._written: deque[Path] = deque()
        self._count = 0

    def put(self, packet: Bytes) -> File:
        self._count += 1
        path = self._folder / f"{self._count:08d}.bin"
        partial = path.with_suffix(".partial")
        packet.tofile(partial)
        partial.rename(path)
        self._written.append(path)
        while len(self._written) > self._keep:
            self._written.popleft().unlink(missing_ok=True)
        return File(str(path))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


def _remove_orphans(parent: Path) -> None:
    """What killed processes left: nobody locks it any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Stored:
    reference: tuple[Any]
    """Within something else, an argument travels as the reference and not as what it stands for."""

    def get(self) -> Bytes:
        import ray

        try:
            found: Bytes = ray.get(self.reference[0])
        except ray.exceptions.RayError as error:
            raise WeightsTorn(f"the weights cannot be had from Ray: {error}") from error
        return found


class RayChannel:
    """Ray's object store. Ray frees an object when the last reference to it is gone."""

    def __init__(self, ray: Any, *, keep: int = KEPT) -> None:
        self._ray = ray
        self._held: deque[Any] = deque(maxlen=keep)

    def put(self, packet: Bytes) -> Stored:
        reference = self._ray.put(packet)
        self._held.append(reference)
        return Stored((reference,))

    def close(self) -> None:
        self._held.clear()
