"""From one process to all others of a group at once, by a collective of ``torch.distributed``: NCCL from GPU to GPU,
gloo between processors.

Invariants: the group is of this channel alone, whatever else the processes collect; ``put`` does not wait for the
members, who may come as late as ``DEADLINE_S``; members that are the same as the last time find the same group, others
and those after a failure a new one.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from roll_core.errors import WeightsTorn
from roll_core.weights.packet import Bytes

log = logging.getLogger(__name__)

DEADLINE_S = 120.0
_DEADLINE = timedelta(seconds=DEADLINE_S)
_CONNECT = timedelta(seconds=5)
"""Where they meet is there before anybody is told of it, or is gone because a member was lost."""


@dataclass(frozen=True, slots=True)
class Call:
    """To take part in a broadcast. ``members``: whom it is for, in the order of their ranks from 1 on."""

    address: tuple[str, int]
    group: str
    members: tuple[str, ...]
    device: str
    size: int
    me: str = ""

    def get(self) -> Bytes:
        if self.me not in self.members:
            raise WeightsTorn(f"the broadcast is for {', '.join(self.members) or 'nobody'}, and not for {self.me!r}")
        rank = 1 + self.members.index(self.me)
        packet = torch.empty(self.size, dtype=torch.uint8, device=self.device)
        try:
            _broadcast(self, rank, packet)
        except RuntimeError as error:
            raise WeightsTorn(f"the broadcast did not reach {self.me}: {error}") from error
        found: Bytes = packet.cpu().numpy()
        return found


class BroadcastChannel:
    def __init__(self, host: str, *, device: str = "cpu") -> None:
        """``host``: this one, as the members know it. ``device``: ``cpu`` or ``cuda``, the members' too."""
        self._host, self._device = host, device
        self._store: Any = None
        self._groups = 0
        self._sending: threading.Thread | None = None
        self.members: Sequence[str] = ()
        """Who takes part in the next one."""
        self._last: tuple[str, ...] | None = None

    def put(self, packet: Bytes) -> Call:
        self.settled()
        members = tuple(self.members)
        if members != self._last:
            self._groups += 1
        self._last = members
        if self._store is None:
            self._store = TCPStore(self._host, 0, is_master=True, wait_for_workers=False, timeout=_DEADLINE)
        call = Call((self._host, self._store.port), f"group {self._groups}", members, self._device, len(packet))
        if members:
            self._sending = threading.Thread(target=self._send, args=(call, packet), name="broadcast", daemon=True)
            self._sending.start()
        return call

    def _send(self, call: Call, packet: Bytes) -> None:
        try:
            _broadcast(call, 0, torch.from_numpy(packet).to(self._device))
        except RuntimeError as error:
            log.warning("the broadcast to %s failed: %s", ", ".join(call.members), error)
            self.renew()

    def renew(self) -> None:
        """The group is over: the next broadcast makes another."""
        self._last = None

    def lost(self, member: str) -> None:
        """It will not come any more: who waits for it is told at once."""
        if self._sending is not None and self._sending.is_alive() and member in (self._last or ()):
            self._store = None  # where they would meet
            self.renew()

    def settled(self) -> None:
        """Wait until the last one has ended, well or not."""
        if self._sending is not None:
            self._sending.join()
            self._sending = None

    def close(self) -> None:
        """One under way is left to its end: its thread dies with the process."""
        self._sending = None


def _broadcast(call: Call, rank: int, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group = _group(call.address, call.group, rank, 1 + len(call.members), call.device)
    group.broadcast([tensor], options).wait(_DEADLINE)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


@lru_cache(maxsize=1)
def _group(address: tuple[str, int], name: str, rank: int, count: int, device: str) -> Any:
    """Blocks until all are there. The one before is forgotten, and closes its connections."""
    meeting = TCPStore(*address, is_master=False, timeout=_CONNECT)
    meeting.set_timeout(_DEADLINE)
    store = PrefixStore(name, meeting)
    if device == "cuda":
        return dist.ProcessGroupNCCL(store, rank, count, dist.ProcessGroupNCCL.Options())
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = _DEADLINE
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_own_address(address))]
    return dist.ProcessGroupGloo(store, rank, count, options)


def _own_address(other: tuple[str, int]) -> str:
    """This machine's, as ``other`` sees it: the host's own name need not resolve."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(other)  # sends nothing
        address: str = probe.getsockname()[0]
        return address
