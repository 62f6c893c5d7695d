"""What a holder says to the platform about its lease: taking and releasing it, beating, another sandbox, snapshots.

Invariants: a lease that is granted after its taking was given up is given back; what is said at the end of a lease is
bounded in time, and what the platform does not hear then ends with the lease's time-to-live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from rock.domain.errors import DeadlineExceeded, LeaseExpired, NotFound, RockError, SandboxLost
from rock.domain.sandbox import SandboxState
from rock.sdk.reaching import loss_of, outlast
from rock.sdk.transport import Transport
from rock.wire.models import (
    LeaseRequest,
    LeaseView,
    RecoverRequest,
    RecoveryReport,
    SandboxView,
    SnapshotRequest,
    SnapshotView,
)

logger = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 5.0
# How long to wait for the node to have noticed a death that the data plane noticed first. Its event takes 64 ms at p50.
_EVIDENCE_WAIT_S = 1.5
_RECOVER_GRACE_S = 5.0
_ENDED = frozenset({SandboxState.RELEASED, SandboxState.FAILED, SandboxState.GONE})


class LeaseCalls:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # --- life

    async def take(self, request: LeaseRequest) -> LeaseView:
        """The lease, unless cancelled; a lease that is granted after the cancellation is given back."""
        once = secrets.token_hex(8)
        asking = asyncio.create_task(
            self.transport.request(
                "POST",
                "leases",
                body=request,
                kind=LeaseView,
                timeout_s=request.wait_s + 30,
                once=once,
                # While the platform is being started again we wait as for any sandbox. A lease that was granted in the
                # moment it died, whose answer nobody got, has no heartbeats and ends with its time-to-live.
                retry_s=request.wait_s,
                wait_if_known=True,
            )
        )
        try:
            view: LeaseView = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.cancel()
            await outlast(asyncio.create_task(self._withdraw(once)), RELEASE_TIMEOUT_S)
            raise
        except DeadlineExceeded:
            await self._withdraw(once)
            raise
        return view

    async def _withdraw(self, once: str) -> None:
        """The platform may still be looking for a sandbox for us, or have found one."""
        try:
            await self.transport.request("DELETE", "leases", once=once, retry_s=2.0, timeout_s=4.0)
        except RockError as error:
            logger.warning("a lease asked for was not withdrawn (%s); if granted, it ends by its time-to-live", error)

    async def beat(self, lease_id: str, *, timeout_s: float) -> LeaseView:
        """Prolong it. Raises LeaseExpired, NotFound, SandboxLost, and what says nothing about it."""
        view: LeaseView = await self.transport.request(
            "POST",
            f"leases/{lease_id}/heartbeat",
            kind=LeaseView,
            timeout_s=timeout_s,
            idempotent=True,
            retry_s=timeout_s,
        )
        return view

    async def release(self, lease_id: str) -> None:
        """Raises nothing."""
        try:
            await self.transport.request("DELETE", f"leases/{lease_id}", idempotent=True, retry_s=2.0, timeout_s=4.0)
        except (NotFound, LeaseExpired):
            pass  # it had ended already, which is what we want
        except RockError as error:
            logger.warning("lease %s was not released (%s); it ends after its time-to-live", lease_id, error)

    # --- another sandbox

    async def recover(self, lease: LeaseView, *, wait_s: float, why: str, snapshot: str) -> LeaseView:
        """The lease with the sandbox that took the place of the lost one. Raises what the platform says."""
        view: LeaseView = await self.transport.request(
            "POST",
            f"leases/{lease.id}/recover",
            body=RecoverRequest(epoch=lease.epoch, wait_s=wait_s, why=why[:500], snapshot=snapshot),
            kind=LeaseView,
            timeout_s=wait_s + _RECOVER_GRACE_S,
            idempotent=True,
            retry_s=wait_s,
        )
        return view

    async def tell(self, lease_id: str, report: RecoveryReport) -> None:
        """For the platform's events; nothing depends on it."""
        with contextlib.suppress(RockError):
            await self.transport.request("POST", f"leases/{lease_id}/recovered", body=report, retry_s=0)

    async def snapshot(self, lease: LeaseView, number: int, step: int, *, timeout_s: float) -> SnapshotView:
        """Have the sandbox's files kept as they are now. Raises what the platform says."""
        view: SnapshotView = await self.transport.request(
            "POST",
            f"leases/{lease.id}/snapshot",
            body=SnapshotRequest(epoch=lease.epoch, number=number, step=step),
            kind=SnapshotView,
            timeout_s=timeout_s,
            idempotent=True,
            retry_s=0,
        )
        return view

    async def forget_snapshot(self, lease_id: str, name: str) -> None:
        """What the platform does not hear now it hears at the next recovery."""
        with contextlib.suppress(RockError):
            await self.transport.request(
                "DELETE", f"leases/{lease_id}/snapshot", params={"name": name}, idempotent=True, retry_s=0
            )

    # --- why a sandbox was lost

    async def explain(self, lease: LeaseView, found: RockError) -> SandboxLost:
        """The loss as the platform knows it: the cause and last words kept with the sandbox."""
        error = loss_of(lease, await self.ended_sandbox(lease.sandbox_id), found)
        error.__cause__ = found
        return error

    async def given_up(self, lease: LeaseView, found: RockError) -> SandboxLost:
        """Why the platform found no other sandbox, with the last words of the one that was lost."""
        seen = await self.ended_sandbox(lease.sandbox_id)
        error = SandboxLost(
            f"{found.message}.",
            hint="The episode is void; take a new lease and play it again.",
            cause="\n".join(seen.evidence.last_output)
            if seen is not None and seen.evidence is not None
            else found.cause,
        )
        error.__cause__ = found
        return error

    async def ended_sandbox(self, sandbox_id: str) -> SandboxView | None:
        """A sandbox that is lost, as soon as the platform has seen it end, or as it stands after a moment."""
        seen: SandboxView | None = None
        deadline = asyncio.get_running_loop().time() + _EVIDENCE_WAIT_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                seen = await self.transport.request(
                    "GET", f"sandboxes/{sandbox_id}", kind=SandboxView, retry_s=0, timeout_s=1.0
                )
            except RockError:
                break
            if seen is not None and (seen.state in _ENDED or seen.evidence is not None):
                break
            await asyncio.sleep(0.05)
        return seen
