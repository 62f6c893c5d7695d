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
    living: int
    """Sandboxes that exist or are starting."""
    capacity: int
    ready: int = 0
    """Ready sandboxes of the very kind that is wanted."""
    pressure: float = 0.0
    """The larger of its CPU and memory use, 0 to 1."""

    @property
    def load(self) -> float:
        return self.living / max(1, self.capacity) + self.pressure


def choose(nodes: Sequence[NodeLoad], rng: random.Random) -> NodeLoad | None:
    """None when no node is healthy. Nodes with a ready sandbox first, then those with room, then any healthy one."""
    healthy = [node for node in nodes if node.healthy]
    if not healthy:
        return None
    candidates = (
        [node for node in healthy if node.ready > 0]
        or [node for node in healthy if node.living < node.capacity]
        or healthy
    )
    pair = rng.sample(candidates, min(2, len(candidates)))
    return min(pair, key=lambda node: node.load)
