"""The weights of all engines of a run that are on Ray: each version is packed and put once, whoever of them takes it.

Invariants: who begins, and whom a version did not reach as it was sent (a checksum, a version, a file or a member that
is missing), gets the whole of it by a way that reaches every machine; calls may come from any thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from roll_core.cluster.ray_cluster import RayCluster
from roll_core.config import Recipe
from roll_core.types import Weights
from roll_core.weights import Publisher
from roll_core.weights.broadcast import BroadcastChannel, Call
from roll_core.weights.channels import Channel, FolderChannel, RayChannel, Ticket

log = logging.getLogger(__name__)

Transport = Literal["object_store", "shared_memory", "file", "broadcast"]


def chosen_transport(recipe: Recipe, cluster: RayCluster) -> Transport:
    """What ``auto`` means here and now."""
    asked = recipe.weights.transport
    if asked != "auto":
        return asked
    seats = [seat for seat in cluster.plan.seats if seat.role.startswith("engine ")]
    return "shared_memory" if cluster.all_here(seats) else "object_store"


class Distribution:
    def __init__(self, cluster: RayCluster, recipe: Recipe, first: Weights) -> None:
        self.transport = chosen_transport(recipe, cluster)
        self._everywhere: Channel = RayChannel(cluster.ray)
        self._channel: Channel = self._everywhere
        if self.transport == "shared_memory":
            self._channel = FolderChannel()
        elif self.transport == "file":
            self._channel = self._everywhere = FolderChannel(Path(recipe.weights.folder).expanduser())
        elif self.transport == "broadcast":
            gpus = torch.cuda.is_available() and all(d.startswith("cuda") for d in recipe.engine.devices)
            self._channel = BroadcastChannel(cluster.address_here, device="cuda" if gpus else "cpu")
        log.info("weights go to the engines by %s", self.transport)
        self._dtype = getattr(torch, recipe.engine.dtype)
        self._publisher = Publisher(self._channel, self._everywhere, delta=recipe.weights.delta, dtype=self._dtype)
        self._publisher.hold(first)
        self._held = first
        self._holders: dict[str, Weights] = {}
        self._receive_s: dict[str, float] = {}
        self._resent = 0
        self._lock = threading.Lock()
        cluster.closes(self.close)

    # --- tickets -----------------------------------------------------------------------------------------------------

    def whole(self, weights: Weights) -> Ticket:
        """Of all of ``weights``: for a new engine."""
        with self._lock:
            if weights is self._held:
                return self._publisher.whole().ticket
            # Older or newer than what the others are given: a packet of its own.
            return Publisher(self._everywhere, dtype=self._dtype).publish(weights).ticket

    async def ticket(self, weights: Weights, engine: str) -> Ticket:
        """Of ``weights`` for this engine; they are packed and put if nobody asked for them before."""
        return await asyncio.to_thread(self._ticket, weights, engine)

    def _ticket(self, weights: Weights, engine: str) -> Ticket:
        with self._lock:
            if weights is not self._held:
                if isinstance(self._channel, BroadcastChannel):
                    self._channel.members = sorted(n for n, held in self._holders.items() if held is self._held)
                self._publisher.publish(weights)
                self._held = weights
            if self._publisher.last is None:
                return self._publisher.whole().ticket
            ticket = self._publisher.last.ticket
            if not isinstance(ticket, Call):
                return ticket
            return replace(ticket, me=engine) if engine in ticket.members else self._publisher.whole().ticket

    async def again(self, refused: Ticket) -> Ticket:
        """Of the whole newest version, for an engine that could do nothing with ``refused``."""
        return await asyncio.to_thread(self._again, refused)

    def _again(self, refused: Ticket) -> Ticket:
        with self._lock:
            self._resent += 1
            if isinstance(self._channel, BroadcastChannel):
                self._channel.renew()
            found = self._publisher.whole().ticket
            return self._publisher.whole(anew=True).ticket if found == refused else found

    # --- who has what ------------------------------------------------------------------------------------------------

    def received(self, engine: str, weights: Weights, seconds: float) -> None:
        with self._lock:
            self._holders[engine], self._receive_s[engine] = weights, seconds

    def lost(self, engine: str) -> None:
        with self._lock:
            self._holders.pop(engine, None)
            self._receive_s.pop(engine, None)
            if isinstance(self._channel, BroadcastChannel):
                self._channel.lost(engine)

    def metrics(self) -> dict[str, float]:
        """``weights/…`` of the version that was published last. ``receive_s``: the longest that an engine took to have
        it; ``resent``: how often, so far, one had to be sent the whole again."""
        if self._publisher.last is None:
            return {}
        own = {"weights/receive_s": max(self._receive_s.values(), default=0.0), "weights/resent": float(self._resent)}
        return self._publisher.last.metrics() | own

    def close(self) -> None:
        self._channel.close()
        self._everywhere.close()
