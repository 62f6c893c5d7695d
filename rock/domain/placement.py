"""Which node gets the next sandbox: of two random candidates the less loaded. Pure; the randomness is passed in.

Two choices instead of the minimum over all: with figures that are always a little old, everyone would run to the same
least-loaded node; two choices come close to the optimum without that (Mitzenmacher 2001).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeLoad:
    name: str
    healthy: bool
    """Its runtime works."""
    busy: int
    """Sandboxes that are leased or starting, and the leases given to it since that was counted."""
    capacity: int
    ready: int = 0
    """Ready sandboxes of the very kind that is wanted."""
    pressure: float = 0.0
    """The larger of its CPU and memory use, 0 to 1."""
    slowness: float = 1.0
    """How many times slower than the others its steps are."""
    last_resort: bool = False
    """Ejected, on trial with as many leases as it may have, or refusing this image: better than nothing."""

    @property
    def load(self) -> float:
        """What a step there costs, roughly: the share of the machine that is taken, in units of its own speed."""
        return (self.busy / max(1, self.capacity) + self.pressure) * max(1.0, self.slowness)


def choose(nodes: Sequence[NodeLoad], rng: random.Random) -> NodeLoad | None:
    """None when no node is healthy. The sound before the last resorts; among those the ones with a ready sandbox, then
    those with room, then any."""
    healthy = [node for node in nodes if node.healthy]
    sound = [node for node in healthy if not node.last_resort] or healthy
    if not sound:
        return None
    candidates = (
        [node for node in sound if node.ready > 0] or [node for node in sound if node.busy < node.capacity] or sound
    )
    pair = rng.sample(candidates, min(2, len(candidates)))
    return min(pair, key=lambda node: node.load)
