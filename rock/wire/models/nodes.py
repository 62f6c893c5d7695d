"""Nodes and their pools."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from rock.domain.nodes import NodeStanding
from rock.domain.sandbox import SandboxState
from rock.wire.models.message import Message
from rock.wire.models.sandboxes import Pressure


class PoolSize(Message):
    """How many ready sandboxes a pool keeps; between the bounds demand decides."""

    ready: Annotated[int, Field(ge=0)]
    """While it is in use."""
    minimum: Annotated[int, Field(ge=0)] = 0
    """Even when nobody has claimed one for long."""
    maximum: Annotated[int, Field(ge=0)] = 0
    """However high the demand; 0: eight times ``ready``."""


class PoolView(Message):
    image: str
    env: str
    digest: str
    target: int
    """What is configured; ``level`` is what it keeps now, from demand."""
    level: int = 0
    ready: int
    starting: int
    waiting: int = 0
    """Claims that wait for one."""
    claims: int = 0
    misses: int = 0


class NodeView(Message):
    name: str
    runtime: str
    healthy: bool
    detail: str = ""
    sandboxes: dict[SandboxState, int] = Field(default_factory=dict)
    capacity: int
    cpu_percent: float = 0.0
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    pools: tuple[PoolView, ...] = ()
    claims: int = 0
    failures: int = 0
    started_at: datetime | None = None
    starting: int = 0
    max_starting: int = 0
    step_p50_s: dict[str, float] = Field(default_factory=dict)
    """Median step latency of late, by pool digest, as the guests measured it."""
    pressure: Pressure | None = None
    standing: NodeStanding = NodeStanding.UP
    """What control makes of it. A node that describes itself says nothing here."""
    standing_detail: str = ""
    last_seen_at: datetime | None = None
    address: str = ""
    """Where its data plane listens."""
    quarantined: tuple[str, ...] = ()
    """Pool digests of the images that it refuses."""
    generation: int = 0
    """Counts the connections that control had to make to it; 0 for a node in control's own process."""


class NodeUpdate(Message):
    """``POST /v1/nodes/{name}/{cordon|uncordon|drain}``."""

    reason: str = ""
