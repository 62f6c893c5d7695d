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
from rock.domain.sandbox import SandboxState
from rock.node.config import NodeConfig
from rock.wire.guest_client import GuestClient
from rock.wire.models import Evidence, PoolView, SandboxSpec, SandboxView

# Claims remembered to estimate how fast they come, and how old they may be to count.
_RATE_SAMPLES = 32
_RATE_WINDOW_S = 60.0


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
    start_s: float | None = None
    ready_at: float = 0.0
    grant: Grant | None = None
    evidence: Evidence | None = None
    client: GuestClient | None = None
    oom_seen: bool = False
    missed_probes: int = 0
    missed_since: float | None = None
    examined: bool = False
    """Somebody is finding out whether it is dead; nobody may hand it out meanwhile."""
    removing: bool = False

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
        )


@dataclass(slots=True, eq=False)
class Waiter:
    """A claim that waits for a sandbox."""

    grant: Grant
    future: asyncio.Future[Record]


@dataclass(slots=True, eq=False)
class Pool:
    """The ready sandboxes of one spec, and the claims that wait for one. First come, first served."""

    spec: SandboxSpec
    digest: str
    backoff: Backoff
    target: int = 0
    ready: deque[Record] = field(default_factory=deque)
    waiters: deque[Waiter] = field(default_factory=deque)
    starting: int = 0
    claims: int = 0
    misses: int = 0
    last_error: RockError | None = None
    image_checked: bool = False
    start_s: float = 1.0
    """Moving average of the seconds one takes to start."""
    used_at: float = 0.0
    _claimed_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RATE_SAMPLES))

    @classmethod
    def of(cls, spec: SandboxSpec, config: NodeConfig, rng: random.Random) -> Pool:
        return cls(spec, spec.digest, Backoff(config.backoff, rng))

    @property
    def waiting(self) -> int:
        return sum(1 for waiter in self.waiters if not waiter.future.done())

    @property
    def idle(self) -> bool:
        return not (self.target or self.ready or self.starting or self.waiters)

    def note_claim(self, now: float) -> None:
        self.claims += 1
        self.used_at = now
        self._claimed_at.append(now)

    def claims_per_s(self, now: float) -> float:
        recent = [at for at in self._claimed_at if now - at <= _RATE_WINDOW_S]
        return len(recent) / max(1.0, now - recent[0]) if len(recent) > 1 else 0.0

    def note_start(self, start_s: float) -> None:
        self.start_s += 0.3 * (start_s - self.start_s)

    def view(self) -> PoolView:
        return PoolView(
            image=self.spec.image,
            env=self.spec.env,
            digest=self.digest,
            target=self.target,
            ready=len(self.ready),
            starting=self.starting,
            claims=self.claims,
            misses=self.misses,
        )
