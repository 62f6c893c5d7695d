"""The handle through which control knows a node, wherever the node lives. ``cluster/`` provides implementations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rock.wire.models import (
    Endpoint,
    EventView,
    ExecRequest,
    ExecResult,
    NodeView,
    QuarantineView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
)


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that was stored before a restart; the node is asked whether its sandbox still lives."""

    lease_id: str
    sandbox_id: str
    token_sha256: str
    epoch: int
    run_id: str
    spec: SandboxSpec
    created_at: datetime


def token_sha256(token: str) -> str:
    """How a lease's token is kept anywhere but in the answer to the lease's creation."""
    return hashlib.sha256(token.encode()).hexdigest()


class NodeHandle(Protocol):
    """One machine's node as control sees it. Every method raises errors of ``rock.domain.errors`` only."""

    @property
    def name(self) -> str: ...

    @property
    def default_image(self) -> str:
        """What a plain sandbox runs on this node when nobody says."""
        ...

    async def view(self) -> NodeView: ...

    async def adopt(self, held: Sequence[HeldLease]) -> Sequence[str]:
        """Once, before the first claim: take over the sandboxes of these leases, remove everything else it owns.

        Returns the ids of the leases whose sandbox lives and answers.
        """
        ...

    async def claim(
        self, spec: SandboxSpec, *, lease_id: str, token_sha256: str, epoch: int, run_id: str, wait_s: float
    ) -> SandboxView:
        """A ready sandbox of ``spec``, now held by the lease; from the warm pool if it has one, else started.

        The same lease comes again, under a higher epoch, when its sandbox was lost.

        Raises: ImageNotFound, RuntimeUnavailable, CapacityExceeded (nothing within ``wait_s``), InvalidRequest,
        Quarantined.
        """
        ...

    async def release(self, sandbox_id: str, *, reason: str) -> None:
        """End its use for good. Idempotent: an unknown or gone sandbox is no error."""
        ...

    def endpoint(self, sandbox_id: str) -> Endpoint:
        """Where clients reach the guest of a sandbox it has handed out."""
        ...

    async def fence(self, leases: Mapping[str, int]) -> Sequence[str]:
        """End every leased sandbox whose lease is not in ``leases`` (id to epoch) or is there with a higher epoch.

        For a node that comes back after its leases were moved elsewhere, and for the periodic comparison. The caller
        puts the claims it has under way in ``leases`` too. Idempotent. Returns the ids of the sandboxes it ended.
        """
        ...

    async def prefetch(self, images: Sequence[str]) -> None:
        """Have these images here before a sandbox wants them. Answers at once; failures are told when one does."""
        ...

    async def quarantine(self) -> Sequence[QuarantineView]: ...

    async def clear_quarantine(self, subject: str) -> bool:
        """Try it again from the next claim on; False if it was not in quarantine."""
        ...

    async def snapshot(self, lease_id: str, *, epoch: int, name: str) -> int:
        """Keep the files of the sandbox that the lease holds under ``epoch`` as image ``name``; the bytes that takes.

        Nothing of it is left when it fails. Raises: NotFound (it holds none here), StaleEpoch, InvalidRequest (this
        runtime, or this sandbox, has nothing to keep), StorageError (the disk is almost full), DeadlineExceeded,
        RuntimeUnavailable.
        """
        ...

    async def remove_snapshot(self, name: str) -> None:
        """Idempotent. Raises Conflict while a sandbox that was made of it exists."""
        ...

    async def snapshots(self) -> Sequence[str]:
        """The names of all that the node has, whoever made them."""
        ...

    async def sandboxes(self) -> Sequence[SandboxView]: ...

    async def sandbox(self, sandbox_id: str) -> SandboxView: ...

    async def exec(self, sandbox_id: str, request: ExecRequest) -> ExecResult: ...

    async def logs(self, sandbox_id: str, lines: int) -> Sequence[str]: ...

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """What it takes at this moment. Raises NotFound for one that does not live."""
        ...

    async def restore_quarantine(self, views: Sequence[QuarantineView]) -> None:
        """What it refused before a restart, before its first claim. What it knows of an image by itself stays."""
        ...

    async def set_pool(self, spec: SandboxSpec, target: int, *, minimum: int = 0, maximum: int = 0) -> None:
        """Keep ``target`` ready sandboxes of ``spec`` while it is in use, more (to ``maximum``; 0: eight times as many)
        when demand asks for it, ``minimum`` even when nobody uses it; 0 and no minimum drains the pool."""
        ...

    def on_change(self, callback: Callable[[SandboxView], None]) -> None:
        """Call back, on the node's loop, after every change of a sandbox's state. A hint: control reconciles too."""
        ...

    def on_event(self, callback: Callable[[EventView], None]) -> None: ...

    def refuse_claims(self) -> None:
        """From now on claims fail with PlatformUnavailable, those that wait included: it is about to close."""
        ...

    async def close(self, *, keep_sandboxes: bool = False) -> None: ...
