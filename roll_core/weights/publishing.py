"""Publish versions of the weights, and follow them.

Invariants: a version is packed once, whoever asks for it and however many; who has nothing, or something else than the
changes were made from, can have the whole version; what a follower holds is always some published version, bit for bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from roll_core.types import Weights
from roll_core.weights.channels import Channel, Ticket
from roll_core.weights.packet import BLOCK_BYTES, pack, unpack, whole_bytes


@dataclass(frozen=True, slots=True)
class Published:
    """A version that can be had. ``changes``: what there is of it is changes to the version before."""

    version: int
    ticket: Ticket
    changes: bool
    sent_bytes: int
    whole_bytes: int
    pack_s: float
    put_s: float

    def metrics(self) -> dict[str, float]:
        """``weights/…``: what went out, and how much of the whole that is."""
        return {
            "weights/sent_bytes": float(self.sent_bytes),
            "weights/whole_bytes": float(self.whole_bytes),
            "weights/sent_share": self.sent_bytes / max(self.whole_bytes, 1),
            "weights/pack_s": self.pack_s,
            "weights/put_s": self.put_s,
        }


class Publisher:
    def __init__(
        self,
        channel: Channel,
        everywhere: Channel | None = None,
        *,
        delta: bool = False,
        dtype: torch.dtype | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        """``everywhere``: for whole versions on demand, where ``channel`` does not reach everybody at any time.
        ``delta``: send what changed since the version before, which is then held here too. ``dtype``: what the engines
        compute in; weights are rounded to it before they are sent. None: as they are."""
        self._channel = channel
        self._everywhere = everywhere or channel
        self._delta = delta
        self._dtype = dtype
        self._block = block_bytes
        self._held: Weights | None = None
        self._whole: Published | None = None
        self.last: Published | None = None

    def publish(self, weights: Weights) -> Published:
        """Changes to the version before, or the whole where there is none."""
        rounded = self._rounded(weights)
        self.last = self._send(self._channel, rounded, self._held if self._delta else None)
        self._held = rounded
        self._whole = None if self.last.changes or self._everywhere is not self._channel else self.last
        return self.last

    def hold(self, weights: Weights) -> None:
        """The version to begin with: nobody is sent it, but who asks for the whole, and changes are changes to it."""
        self._held = self._rounded(weights)

    def _rounded(self, weights: Weights) -> Weights:
        if self._dtype is None:
            return weights
        return Weights(weights.version, {name: t.to(self._dtype) for name, t in weights.tensors.items()})

    def whole(self, *, anew: bool = False) -> Published:
        """The newest version, all of it: for who has nothing to change. ``anew``: put it again, what was put before is
        damaged. Raises ValueError before the first."""
        if self._held is None:
            raise ValueError("nothing has been published yet")
        if self._whole is None or anew:
            self._whole = self._send(self._everywhere, self._held, None)
        return self._whole

    def _send(self, channel: Channel, weights: Weights, base: Weights | None) -> Published:
        began_s = time.perf_counter()
        packet = pack(weights, base, block_bytes=self._block)
        packed_s = time.perf_counter()
        ticket = channel.put(packet)
        done_s = time.perf_counter()
        return Published(
            version=weights.version,
            ticket=ticket,
            changes=base is not None,
            sent_bytes=len(packet),
            whole_bytes=whole_bytes(weights.tensors),
            pack_s=packed_s - began_s,
            put_s=done_s - packed_s,
        )

    def close(self) -> None:
        self._channel.close()


class Subscriber:
    """Holds the version that it received last, where changes to it may follow."""

    def __init__(self, *, delta: bool = True) -> None:
        self._delta = delta
        self.held: Weights | None = None
        self.receive_s = 0.0

    def receive(self, ticket: Ticket) -> Weights:
        """Raises WrongBase when it needs another version than is held: ask for the whole. WeightsTorn when damaged;
        what was held is still held."""
        began_s = time.perf_counter()
        weights = unpack(ticket.get(), self.held)
        self.held = weights if self._delta else None
        self.receive_s = time.perf_counter() - began_s
        return weights
