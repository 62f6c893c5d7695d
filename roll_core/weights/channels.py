"""Ways for bytes from one process to others. A way knows nothing of weights; what it loses, the checksums notice.

| channel | reaches | receivers read |
|---|---|---|
| :class:`FolderChannel` in shared memory | processes of this machine | memory, mapped |
| :class:`FolderChannel` elsewhere | whoever mounts the folder | the file system |
| :class:`RayChannel` | every node of a Ray cluster | a copy per node, shared within it |
| :class:`BroadcastChannel` | a ``torch.distributed`` group (NCCL or gloo) | their own copy, all at once |

Invariants: a ticket is small and can be pickled; what it stands for does not change; the newest ``keep`` can be had.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from roll_core.errors import WeightsTorn
from roll_core.weights.packet import Bytes

_SHARED_MEMORY = Path("/dev/shm")
KEPT = 2
"""A slow receiver may still read the one before the newest."""


class Channel(Protocol):
    def put(self, packet: Bytes) -> Any:
        """Leave ``packet`` for the others; returns the ticket for it."""
        ...

    def get(self, ticket: Any) -> Bytes:
        """Raises WeightsTorn when it cannot be had (any more)."""
        ...

    def close(self) -> None: ...


class FolderChannel:
    """Files in a folder: shared memory by default, of this machine alone."""

    def __init__(self, folder: Path | None = None, *, keep: int = KEPT) -> None:
        """``folder``: one that the receivers have under the same name. None: one of its own in shared memory, removed
        in the end."""
        self._own = folder is None
        memory = str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="rock-weights-", dir=memory)) if folder is None else Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._written: deque[Path] = deque()
        self._count = 0

    def put(self, packet: Bytes) -> str:
        self._count += 1
        path = self._folder / f"weights-{os.getpid()}-{self._count:08d}.bin"
        partial = path.with_suffix(".partial")
        packet.tofile(partial)
        partial.rename(path)
        self._written.append(path)
        while len(self._written) > self._keep:
            self._written.popleft().unlink(missing_ok=True)
        return str(path)

    def get(self, ticket: str) -> Bytes:
        try:
            found: Bytes = np.memmap(ticket, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise WeightsTorn(f"the weights in {ticket} cannot be read: {error}") from error
        return found

    def close(self) -> None:
        while self._written:
            self._written.popleft().unlink(missing_ok=True)
        if self._own:
            shutil.rmtree(self._folder, ignore_errors=True)


class RayChannel:
    """Ray's object store. Ray frees an object when the last reference to it is gone."""

    def __init__(self, ray: Any, *, keep: int = KEPT) -> None:
        self._ray = ray
        self._held: deque[Any] = deque(maxlen=keep)

    def put(self, packet: Bytes) -> list[Any]:
        reference = self._ray.put(packet)
        self._held.append(reference)
        return [reference]  # in a list, an argument travels as the reference and not as what it stands for

    def get(self, ticket: list[Any]) -> Bytes:
        try:
            found: Bytes = self._ray.get(ticket[0])
        except self._ray.exceptions.RayError as error:
            raise WeightsTorn(f"the weights cannot be had from Ray: {error}") from error
        return found

    def close(self) -> None:
        self._held.clear()


class BroadcastChannel:
    """A collective: ``put`` on rank ``source`` and ``get`` on all others, at the same time and equally often.

    With NCCL from GPU to GPU. A group that loses a member is over; a new one has to be made.
    """

    def __init__(self, source: int = 0, *, device: str = "cpu", group: dist.ProcessGroup | None = None) -> None:
        self._source, self._device, self._group = source, device, group

    def put(self, packet: Bytes) -> int:
        dist.broadcast(torch.tensor([len(packet)], device=self._device), self._source, group=self._group)
        dist.broadcast(torch.from_numpy(packet).to(self._device), self._source, group=self._group)
        return len(packet)

    def get(self, ticket: Any = None) -> Bytes:
        """``ticket`` is not looked at."""
        size = torch.zeros(1, dtype=torch.int64, device=self._device)
        dist.broadcast(size, self._source, group=self._group)
        packet = torch.empty(int(size.item()), dtype=torch.uint8, device=self._device)
        dist.broadcast(packet, self._source, group=self._group)
        found: Bytes = packet.cpu().numpy()
        return found

    def close(self) -> None:
        """The group belongs to whoever made it."""
