"""Leases: asking for one, holding it, and going on in another sandbox when its own is lost."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from rock.wire.models.message import Message
from rock.wire.models.sandboxes import Endpoint, SandboxSpec

Recovery = Literal["replay", "snapshot", "none"]


class LeaseRequest(Message):
    """Give ``env`` (a known environment), or ``image`` or a full ``spec``. Without an image, in the spec too, it is the
    runtime's own: the base image under Docker, the host's system under bubblewrap."""

    env: str = ""
    image: str = ""
    spec: SandboxSpec | None = None
    ttl_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """The lease ends when this long passes without a heartbeat."""
    wait_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long to wait for a sandbox before giving up with ``capacity-exceeded``."""
    run_id: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    recovery: Recovery | None = None
    """What happens when the sandbox is lost: null takes the environment's word; a plain sandbox has none. With
    ``replay`` or ``snapshot`` the lease lives on: it is bound to another sandbox under the next epoch."""
    task: str = ""
    """What is to be played: an environment may have an image for each of its tasks. Empty: its own image."""
    needs_s: Annotated[float, Field(ge=0)] = 0.0
    """How long its holder may hold it at most; 0: no limit. Refused if shorter than the environment's deadlines
    (episode, scoring and clean-up) add up to."""


class RecoverRequest(Message):
    """``POST /v1/leases/{id}/recover``: the holder lost its sandbox and waits for the one that takes its place."""

    epoch: Annotated[int, Field(ge=1)]
    """The epoch the holder speaks for. If the lease is past it already, the answer is the lease as it is now."""
    wait_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    why: str = ""
    snapshot: str | None = None
    """The snapshot its holder can go on from; empty: none, so the other sandbox is to be as new. Null: whichever."""


class SnapshotRequest(Message):
    """``POST /v1/leases/{id}/snapshot``: keep the sandbox's files as they are now. Between two steps, by its holder."""

    epoch: Annotated[int, Field(ge=1)]
    """The one the holder speaks for."""
    number: Annotated[int, Field(ge=1)]
    """Counts the snapshots of a lease. Asked again with the same one, the answer is the same snapshot."""
    step: Annotated[int, Field(ge=0)] = 0
    """How many steps of the episode are in it."""


class SnapshotView(Message):
    name: str
    """Of the image that was made; removed when a later one replaces it, or the lease ends."""
    step: int
    at: datetime
    bytes: int
    """What it takes beside the image that the sandbox was made from, as far as the runtime can say."""
    node: str
    number: int = 0
    took_s: float = 0.0


class RecoveryReport(Message):
    """How a holder got over the loss of its sandbox, in its own measure. ``POST /v1/leases/{id}/recovered``."""

    verdict: Literal["resumed", "diverged"] = "resumed"
    epoch: int
    """The one it speaks for since."""
    cause: str = ""
    """Why the sandbox was lost, as far as the platform knows it."""
    old_sandbox: str
    new_sandbox: str
    detect_s: float = 0.0
    """From the last sign of life of the old sandbox to the node's verdict; 0: the end of a connection said it."""
    rebind_s: float = 0.0
    """From the holder's hearing of it to the connection with the new sandbox."""
    replay_s: float = 0.0
    """From there to the state that was lost."""
    steps: int = 0
    """How many were replayed."""
    from_step: int = 0
    """Where the snapshot stood that the other sandbox was made from; 0: replayed from the start."""

    @property
    def sentence(self) -> str:
        return (
            f"sandbox {self.old_sandbox} → {self.new_sandbox}: {self.verdict} in {self.rebind_s + self.replay_s:.3f} s "
            f"({self.rebind_s:.3f} s to bind, {self.replay_s:.3f} s to {self._way}); {self.cause}"
        )

    @property
    def _way(self) -> str:
        restored = f"restore the snapshot of step {self.from_step} and " if self.from_step else ""
        return f"{restored}replay {self.steps} steps"


class LeaseView(Message):
    id: str
    sandbox_id: str
    epoch: int
    token: str
    """Proof of the lease for the gateway. Only in the answer to its creation; empty elsewhere."""
    endpoint: Endpoint
    ttl_s: float
    created_at: datetime
    run_id: str = ""
    env: str = ""
    image: str = ""
    recovery: Recovery = "none"
    recoveries: int = 0
    """How often it was bound to another sandbox."""
    recovering: bool = False
    """Its sandbox is lost and its replacement is being made."""
    snapshot: str = ""
    """Of which snapshot its present sandbox was made; empty: of its image."""
    latest_snapshot: SnapshotView | None = None
    """What the next one would be made of."""
    snapshot_every: int = 0
    """How many steps its environment wants between two snapshots; 0: it does not say. Only in the answer to the
    lease's creation."""
    judge: str = ""
    """The environment that gives this one's rewards; empty: it gives them itself. Only in the answer to the lease's
    creation."""
    task: str = ""
    """The only task that can be played in this sandbox, whose image it has; empty: any. Only in the answer to the
    lease's creation."""
