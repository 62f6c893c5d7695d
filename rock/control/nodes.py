"""The nodes as control knows them, and which of them gets the next sandbox."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence

from rock.domain.errors import PlatformUnavailable
from rock.domain.placement import NodeLoad, choose
from rock.domain.sandbox import LIVING
from rock.wire.handle import NodeHandle
from rock.wire.models import NodeView, SandboxSpec


class NodeBook:
    def __init__(self, nodes: Sequence[NodeHandle], rng: random.Random) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._rng = rng

    def __iter__(self) -> Iterator[NodeHandle]:
        return iter(tuple(self._nodes.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, name: str) -> NodeHandle:
        return self._nodes[name]

    async def choose(self, spec: SandboxSpec) -> NodeHandle:
        """Raises PlatformUnavailable when no node may be given a lease."""
        if len(self._nodes) == 1:
            return next(iter(self))
        views = await asyncio.gather(*(node.view() for node in self))
        chosen = choose([_load(view, spec.digest) for view in views], self._rng)
        if chosen is None:
            details = "; ".join(f"{view.name}: {view.detail}" for view in views) or "none has joined"
            raise PlatformUnavailable(f"no node is healthy ({details})", hint="`rock doctor` says what is missing.")
        return self._nodes[chosen.name]


def _load(view: NodeView, digest: str) -> NodeLoad:
    memory = view.memory_used_bytes / view.memory_total_bytes if view.memory_total_bytes else 0.0
    return NodeLoad(
        name=view.name,
        healthy=view.healthy,
        living=sum(count for state, count in view.sandboxes.items() if state in LIVING),
        capacity=view.capacity,
        ready=sum(pool.ready for pool in view.pools if pool.digest == digest),
        pressure=max(view.cpu_percent / 100, memory),
    )
