"""One node in control's book: its handle, what was seen of it last, and what control makes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from rock.domain.clock import Clock
from rock.domain.nodes import NodeHealth, NodeStanding
from rock.domain.placement import NodeLoad
from rock.domain.sandbox import SandboxState
from rock.wire.handle import NodeHandle
from rock.wire.models import NodeView, SandboxSpec

_BUSY = (SandboxState.REQUESTED, SandboxState.STARTING, SandboxState.LEASED, SandboxState.SUSPECT)


class LeaseKeeper(Protocol):
    """What the book of leases does when a node goes or comes."""

    def node_lost(self, name: str, why: str) -> None:
        """Its leases must live on elsewhere, or end."""
        ...

    async def readopt(self, node: NodeHandle) -> None:
        """Tell a node that was away which leases are its own; those it lost are lost."""
        ...

    def drain(self, name: str, why: str) -> int:
        """Move the leases that can be moved; how many there still are."""
        ...


@dataclass(frozen=True, slots=True)
class Pool:
    """How many ready sandboxes of a spec every node is to keep; see `NodeHandle.set_pool`."""

    spec: SandboxSpec
    target: int
    minimum: int = 0
    maximum: int = 0

    @property
    def wanted(self) -> bool:
        return self.target > 0 or self.minimum > 0


@dataclass(slots=True, eq=False)
class Member:
    handle: NodeHandle
    health: NodeHealth
    standing: NodeStanding = NodeStanding.UP
    """As it was announced last."""
    detail: str = ""
    """Why it stands so, for people."""
    view: NodeView | None = None
    seen_at: datetime | None = None
    generation: int = 0
    """Of the connection on which it was told its leases."""
    starved_mark_s: float = 0.0
    placed: Counter[str] = field(default_factory=Counter)
    """Leases given to it by pool since ``view`` was asked for."""
    trial_leases: int = 0
    slowness: float = 1.0
    drained: bool = False
    beating: asyncio.Task[None] | None = None
    rejoining: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it is dead, and for good when it has left: nobody need wait for an answer of it."""

    async def keep(self, pool: Pool) -> None:
        """Tell it the size of a pool: none while it drains."""
        if self.health.word is NodeStanding.DRAINING:
            await self.handle.set_pool(pool.spec, 0)
        else:
            await self.handle.set_pool(pool.spec, pool.target, minimum=pool.minimum, maximum=pool.maximum)

    def load(self, digest: str, *, last_resort: bool) -> NodeLoad:
        view = self.view
        assert view is not None, "a node is looked at before it is chosen"
        memory = view.memory_used_bytes / view.memory_total_bytes if view.memory_total_bytes else 0.0
        ready = sum(pool.ready for pool in view.pools if pool.digest == digest)
        return NodeLoad(
            name=view.name,
            healthy=view.healthy,
            busy=sum(view.sandboxes.get(state, 0) for state in _BUSY) + self.placed.total(),
            capacity=view.capacity,
            ready=max(0, ready - self.placed[digest]),
            pressure=max(view.cpu_percent / 100, memory),
            slowness=self.slowness,
            last_resort=last_resort or digest in view.quarantined,
        )

    def described(self, now: float) -> NodeView:
        """Its last view, with what control makes of it."""
        view = self.view or NodeView(name=self.handle.name, runtime="", healthy=False, detail="never seen", capacity=0)
        standing = self.health.standing(now)
        out = standing in (NodeStanding.DEAD, NodeStanding.SUSPECT)
        return view.model_copy(
            update={
                "standing": standing,
                "standing_detail": self.detail,
                "last_seen_at": self.seen_at,
                "healthy": view.healthy and not out,
                "detail": f"{standing}: {self.detail}" if out else view.detail,
                "address": view.address or self._address(),
            }
        )

    def _address(self) -> str:
        door = self.handle.endpoint("") if self.view is not None else None
        return f"{door.gateway_host}:{door.gateway_port}" if door is not None else ""


class LagMeter:
    """How long this process's loop did not run when it should have: nobody else may be blamed for that time."""

    _TICK_S = 0.1
    # Less than this, on a machine that is merely busy, keeps no answer from being heard within its deadline.
    _TOLERATED_S = 0.25

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.starved_s = 0.0

    async def run(self) -> None:
        before = self._clock.now()
        while True:
            await asyncio.sleep(self._TICK_S)
            now = self._clock.now()
            self.note(now - before - self._TICK_S)
            before = now

    def note(self, late_s: float) -> None:
        if late_s > self._TOLERATED_S:
            self.starved_s += late_s
