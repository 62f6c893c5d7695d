"""Looking after a sandbox whose lease somebody else holds: by its id, from the machine it runs on.

Invariants: the lease is neither prolonged nor ended by it; requests carry the lease's present epoch, so a sandbox that
has lost its lease refuses them; what a borrower started ends with the sandbox, not with the borrower.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rock.domain.errors import Conflict, InvalidRequest
from rock.sdk.lease import HeldLease
from rock.sdk.sandbox import Sandbox
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseRequest, LeaseView, SandboxSpec, SnapshotView

if TYPE_CHECKING:
    from rock.sdk.client import Rock

_COPY_TTL_S = 3600.0


class Borrowed(HeldLease):
    """What :class:`Sandbox` needs of a lease, without one of its own."""

    def __init__(self, rock: Rock, lease: LeaseView, spec: SandboxSpec, copy_ttl_s: float) -> None:
        request = LeaseRequest(
            image=spec.image, spec=spec, ttl_s=copy_ttl_s, labels={"by": f"fork of {lease.sandbox_id}"}
        )
        super().__init__(rock._transport, request)
        self._borrowed = lease

    async def open(self) -> LeaseView:
        """Connect. Raises SandboxLost."""
        self._guest = await GuestClient.connect_unix(self._borrowed.endpoint.socket_path)
        self._lease = self._borrowed
        return self._borrowed

    async def close(self) -> None:
        """Hang up."""
        self._lease = None
        await self._hang_up()

    async def call(self, op: str, *, timeout_s: float, repeatable: bool = False, **fields: Any) -> Any:
        if self._guest is None or self._guest.closed:
            await self.open()
        assert self._guest is not None
        return await self._guest.call(op, timeout_s=timeout_s, epoch=self._borrowed.epoch, **fields)

    async def snapshot(self, number: int, step: int, *, timeout_s: float) -> SnapshotView:
        """Its holder's numbers are not known here: begin where they will hardly come."""
        return await super().snapshot(number + (1 << 30) + int.from_bytes(os.urandom(3)), step, timeout_s=timeout_s)


async def borrow(rock: Rock, sandbox_id: str, *, copy_ttl_s: float = _COPY_TTL_S) -> Sandbox:
    """The leased sandbox of that id; open it with ``async with``. ``copy_ttl_s``: how long its copies live
    unless somebody holds them.

    Raises: NotFound (caller: no such sandbox), Conflict (caller: it is not leased, and what waits in the warm pool must
    stay untouched), InvalidRequest (caller: it runs on another machine).
    """
    seen = await rock.sandbox_view(sandbox_id)
    lease = next((one for one in await rock.leases() if one.sandbox_id == sandbox_id), None)
    if lease is None:
        raise Conflict(
            f"Sandbox {sandbox_id} is {seen.state.value}, not leased.", hint="Make one with `rock sandbox create`."
        )
    path = lease.endpoint.socket_path
    if not path or not os.path.exists(path):  # noqa: ASYNC240 - a stat of a local file
        raise InvalidRequest(
            f"Sandbox {sandbox_id} runs on node {lease.endpoint.node}, whose sockets are not on this machine.",
            hint="Run the command there; `rock exec` works from everywhere.",
        )
    if not os.access(path, os.W_OK):
        raise InvalidRequest(
            f"The socket of sandbox {sandbox_id} belongs to another user.",
            hint="Run the command as the user that runs the platform.",
        )
    return Sandbox(Borrowed(rock, lease, seen.spec, copy_ttl_s))
