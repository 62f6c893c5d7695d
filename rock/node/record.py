"""What a node knows of one sandbox and of one pool. Plain state; :mod:`rock.node.fleet` alone changes it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rock.domain.backoff import Backoff
from rock.domain.errors import RockError
from rock.domain.sandbox import MEANING, SandboxState
from rock.domain.sizing import Sizer
from rock.node.config import NodeConfig
from rock.node.health import Health
from rock.wire.guest_client import GuestClient
from rock.wire.models import Evidence, PoolView, SandboxSpec, SandboxView


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease a sandbox is held by, as the node and its gateway know it."""

    lease_id: str
    token_sha256: str
    epoch: int
    run_id: str


@dataclass(slots=True, eq=False)
class Record:
    id: str
    spec: SandboxSpec
    shared_dir: Path
    state: SandboxState
    created_at: datetime
    changed_at: datetime
    handle: str = ""
    digest: str = ""
    """Of its spec: the key of its pool. Kept, because computing it costs more than the rest of a claim."""
    start_s: float | None = None
    requested_at: float = 0.0
    ready_at: float = 0.0
    image_version: str = ""
    """What its image's name stood for when it was started."""
    awaits_image: bool = False
    """Its image is being looked up, fetched or made: that takes none of the places for starts."""
    survived: bool = False
    """It has lived long enough to speak for its image."""
    grant: Grant | None = None
    evidence: Evidence | None = None
    client: GuestClient | None = None
    health: Health = field(default_factory=Health)
    examined: bool = False
    """Somebody is finding out whether it is dead; nobody may hand it out meanwhile."""
    removing: bool = False

    def __post_init__(self) -> None:
        self.digest = self.digest or self.spec.digest

    @property
    def socket_path(self) -> str:
        return str(self.shared_dir / "guest.sock")

    def view(self, node: str, runtime: str) -> SandboxView:
        return SandboxView(
            id=self.id,
            state=self.state,
            node=node,
            runtime=runtime,
            spec=self.spec,
            lease_id=self.grant.lease_id if self.grant else "",
            run_id=self.grant.run_id if self.grant else "",
            created_at=self.created_at,
            changed_at=self.changed_at,
            start_s=self.start_s,
            handle=self.handle,
            evidence=self.evidence,
            meaning=MEANING[self.state],
            oom_kills=self.health.oom_kills,
            env_deaths=self.health.env_deaths,
            slow=self.health.slow,
        )


@dataclass(slots=True, eq=False)
class Waiter:
    """A claim that waits for a sandbox."""

    grant: Grant
    future: asyncio.Future[Record]


@dataclass(slots=True, eq=False)
class Pool:
    """The ready sandboxes of one spec. Who waits for one stands in the fleet's queue."""

    spec: SandboxSpec
    digest: str
    backoff: Backoff
    sizer: Sizer
    ready: deque[Record] = field(default_factory=deque)
    starting: int = 0
    claims: int = 0
    misses: int = 0
    last_error: RockError | None = None
    image_version: str | None = None
    """What the image's name stood for when it was last looked up; None: it was not, or must be again."""

    @classmethod
    def of(cls, spec: SandboxSpec, digest: str, config: NodeConfig, rng: random.Random) -> Pool:
        return cls(spec, digest, Backoff(config.backoff, rng), Sizer(config.sizing))

    def view(self, waiting: int) -> PoolView:
        return PoolView(
            image=self.spec.image,
            env=self.spec.env,
            digest=self.digest,
            target=self.sizer.limits.ready,
            level=self.sizer.level,
            ready=len(self.ready),
            starting=self.starting,
            waiting=waiting,
            claims=self.claims,
            misses=self.misses,
        )
