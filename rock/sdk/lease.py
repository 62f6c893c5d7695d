"""Holding a sandbox: take a lease, beat while it is held, give it back whatever happens.

Invariants: a lease that was taken is released exactly once, also when the task that holds it is cancelled, and within
`RELEASE_TIMEOUT_S`; while it is held, heartbeats go out by themselves; as soon as the platform says that the lease or
its sandbox is lost, every call in flight on the sandbox fails with that reason, not after its time-out. A platform
that does not answer is no such statement: the sandbox lives on, and so does the episode.

The sandbox of a lease that recovers can be *lost* without the lease being *over*: calls fail until :meth:`rebind`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from rock.domain.errors import (
    InvalidRequest,
    LeaseExpired,
    NotFound,
    Recovering,
    RockError,
    SandboxLost,
    StaleEpoch,
)
from rock.sdk.lease_calls import RELEASE_TIMEOUT_S, LeaseCalls
from rock.sdk.reaching import again, outlast, reach
from rock.sdk.transport import Transport
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseRequest, LeaseView, SnapshotView

logger = logging.getLogger(__name__)

# Three heartbeats fit in a time-to-live, so that one or two may go astray.
BEATS_PER_TTL = 3
LONGEST_BEAT_S = 20.0
# A call that is silent for this long asks whether its sandbox is still there, and goes on asking: a machine that was
# cut off ends no connection, and the platform knows of it seconds later.
SILENT_S = 2.0
# Once silent it asks this often for a while: a node that is cut off is given up 3 to 4 s after its last answer, and
# whoever hears of it a moment later has another sandbox within 5 s. A call that is merely long costs SILENT_S each.
SILENT_ASK_S = 0.7
SILENT_SOON_S = 10.0
_GONE = (SandboxLost, LeaseExpired, StaleEpoch)


class HeldLease:
    """One lease and the connection to its sandbox. Between :meth:`open` and :meth:`close`."""

    def __init__(self, transport: Transport, request: LeaseRequest) -> None:
        self.calls = LeaseCalls(transport)
        self._request = request
        self._lease: LeaseView | None = None
        self._guest: GuestClient | None = None
        self._beat: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._beat_now = asyncio.Event()
        self._silent_at: float | None = None
        """Since when a call has been unanswered for so long that we ask; None once the guest has spoken."""
        self._forks = 0
        self.lost: RockError | None = None
        """Why the sandbox is no more; None while it lives, as far as is known."""
        self.over = False
        """No other sandbox will take its place."""
        self.on_loss: Callable[[], None] = lambda: None
        """Called when a sandbox is lost that may be replaced, also while nobody calls."""

    @property
    def view(self) -> LeaseView:
        if self._lease is None:
            raise LeaseExpired("No sandbox is held.", hint="Use the object inside its `async with` block.")
        return self._lease

    @property
    def active(self) -> bool:
        return self._lease is not None

    @property
    def recovers(self) -> bool:
        return self._lease is not None and self._lease.recovery != "none" and not self.over

    # --- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> LeaseView:
        """Take the lease and connect. Raises what LeaseRequest can meet: NotFound, ImageNotFound, CapacityExceeded…"""
        if self._lease is not None:
            raise RuntimeError("the lease is already held")
        self.lost, self.over = None, False
        self._lease = await self.calls.take(self._request)
        try:
            await self._connect()
        except BaseException as error:
            if not (self.recovers and isinstance(error, _GONE)):
                await self.close()
                raise
            self.lose(error)  # it died on the way here; the first call meets another
        self._beat = asyncio.create_task(self._keep_beating(self._lease), name=f"heartbeat {self._lease.id}")
        return self._lease

    async def close(self) -> None:
        """Stop beating, hang up, release. Bounded in time, never cut short by a cancellation, raises nothing else."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        _, cancelled = await outlast(asyncio.create_task(self._close(lease)), RELEASE_TIMEOUT_S)
        if cancelled:
            raise asyncio.CancelledError

    async def _close(self, lease: LeaseView) -> None:
        guest, self._guest = self._guest, None
        tasks = {task for task in (self._beat, self._follower) if task is not None}
        self._beat = self._follower = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if guest is not None:
            await guest.close()
        await self.calls.release(lease.id)

    # --- heartbeats --------------------------------------------------------------------------------------------------

    async def _keep_beating(self, lease: LeaseView) -> None:
        every_s = min(lease.ttl_s / BEATS_PER_TTL, LONGEST_BEAT_S)
        while not self.over:
            await self._pause(every_s)
            asked_as = self._lease
            try:
                seen = await self.calls.beat(lease.id, timeout_s=every_s)
            except (LeaseExpired, NotFound, StaleEpoch, SandboxLost) as error:
                explain = self.calls.given_up if self.recovers else self.calls.explain
                self.over = True
                self.lost = await explain(self.view, error)
                await self._hang_up()  # whatever waits on it fails now
            except RockError as error:
                # No answer says nothing about the sandbox; the data plane goes on without the control plane.
                logger.info("heartbeat of lease %s: %s", lease.id, error)
            else:
                if self._lease is asked_as:  # else the answer is about a loss that is mended by now
                    await self._heed(seen)

    async def _pause(self, every_s: float) -> None:
        if self._silent_at is not None:
            silent_s = asyncio.get_running_loop().time() - self._silent_at
            every_s = min(every_s, SILENT_ASK_S if silent_s < SILENT_SOON_S else SILENT_S)
        self._beat_now.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s * random.uniform(0.8, 1.0)):
                await self._beat_now.wait()

    async def _heed(self, seen: LeaseView) -> None:
        """The platform may know of a loss before we do."""
        mine = self.view.epoch
        if self.lost is None and (seen.epoch > mine or (seen.recovering and seen.epoch == mine)):
            self.lose(SandboxLost(f"the platform has lost sandbox {self.view.sandbox_id}"))
            await self._hang_up()

    async def _hang_up(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            await guest.close()

    # --- another sandbox ---------------------------------------------------------------------------------------------

    def lose(self, why: RockError) -> None:
        """The sandbox is of no use any more; calls fail with ``why`` until there is another."""
        if self.lost is None:
            self.lost = why
            self.on_loss()

    async def snapshot(self, number: int, step: int, *, timeout_s: float) -> SnapshotView:
        """Have the sandbox's files kept as they are now. Raises what the platform says."""
        return await self.calls.snapshot(self.view, number, step, timeout_s=timeout_s)

    def another(self, image: str = "") -> HeldLease:
        """One on a new sandbox of the same kind, not open yet; of ``image`` if given."""
        request = self._request
        if image and request.spec is not None:
            spec = request.spec.model_copy(update={"image": image})
            request = request.model_copy(update={"spec": spec, "image": image})
        return HeldLease(self.calls.transport, request)

    async def snapshot_for_fork(self, *, timeout_s: float) -> str:
        """An image of the sandbox's root as it is now; empty where that cannot be written, so that there is nothing to
        keep. Raises what the platform says."""
        spec = self._request.spec
        if spec is None or spec.read_only:
            return ""
        self._forks += 1
        try:
            return (await self.snapshot(self._forks, 0, timeout_s=timeout_s)).name
        except InvalidRequest:
            if self.view.image == "host":  # bubblewrap: the root is the host's own, whatever the spec says
                return ""
            raise

    async def forget_snapshot(self, name: str) -> None:
        """It holds another episode's state."""
        await self.calls.forget_snapshot(self.view.id, name)

    async def rebind(self, *, wait_s: float, snapshot: str = "") -> LeaseView:
        """Connect to the sandbox that takes the place of the lost one, under the lease's next epoch: one that was made
        of ``snapshot``, or one that is as new.

        Raises: SandboxLost when there is none (then the lease is over), or when the other one does not answer either.
        """
        lease = self.view
        await self._hang_up()
        why = self.lost.message if self.lost else ""
        try:
            found = await self.calls.recover(lease, wait_s=wait_s, why=why, snapshot=snapshot)
        except (LeaseExpired, NotFound, SandboxLost) as error:
            self.over = True
            self.lost = await self.calls.given_up(lease, error)
            raise again(self.lost) from error
        except RockError as error:
            raise Recovering(
                f"no other sandbox for lease {lease.id} yet: {error.message}", hint=error.hint, cause=error.cause
            ) from error
        if self._lease is not lease:
            raise LeaseExpired("The session was closed while it recovered.")
        self._lease = found.model_copy(
            update={
                "token": lease.token,
                "snapshot_every": lease.snapshot_every,
                "judge": lease.judge,
                "task": lease.task,
            }
        )
        self.lost = None
        try:
            await self._connect()
        except _GONE as error:
            self.lose(error)
            raise
        return self._lease

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(self, op: str, *, timeout_s: float, repeatable: bool = False, **fields: Any) -> Any:
        """One operation of the guest. One that is ``repeatable`` (it carries a sequence number, or changes nothing)
        is sent once more over a new connection when the old one ended: a gateway may restart under a living sandbox.

        Raises: the guest's own error; SandboxLost with the platform's evidence when the sandbox or the lease is lost;
        DeadlineExceeded after ``timeout_s``; LeaseExpired when nothing is held.
        """
        lease = self.view
        if self.lost is not None:
            raise again(self.lost)
        for last_try in (not repeatable, True):
            guest: GuestClient | None = None
            try:
                guest = await self._connect()
                return await self._ask(guest, op, timeout_s, lease.epoch, fields)
            except _GONE as error:
                if self._lease is None:
                    raise LeaseExpired("The session was closed during the call.") from error
                if self._lease is not lease:
                    raise  # it is about a sandbox whose place another one has taken
                if self.lost is not None:
                    raise again(self.lost) from error
                if guest is not None and guest.closed and not last_try:
                    continue
                if self.recovers:
                    self.lose(error)
                    raise
                if guest is not None and not (guest.closed and isinstance(error, SandboxLost)):
                    raise  # the guest lives, and refuses us or says that its env process does not
                self.lost = await self.calls.explain(lease, error)
                raise again(self.lost) from error
        raise AssertionError("unreachable")

    async def _ask(self, guest: GuestClient, op: str, timeout_s: float, epoch: int, fields: dict[str, Any]) -> Any:
        silent = asyncio.get_running_loop().call_later(SILENT_S, self._fell_silent)
        try:
            return await guest.call(op, timeout_s=timeout_s, epoch=epoch, **fields)
        finally:
            self._silent_at = None
            silent.cancel()

    def _fell_silent(self) -> None:
        if self._silent_at is None:
            self._silent_at = asyncio.get_running_loop().time()
            self._beat_now.set()

    async def _connect(self) -> GuestClient:
        """To the guest's own socket if it is on this machine, else through the node's gateway."""
        if self._guest is not None and not self._guest.closed:
            return self._guest
        lease = self.view
        async with self._connecting:
            if self._guest is not None and not self._guest.closed:
                return self._guest
            guest = await reach(lease)
            if self._lease is not lease or self.lost is not None:
                await guest.close()
                if self._lease is None:
                    raise LeaseExpired("The session was closed while it connected.")
                raise SandboxLost(f"sandbox {lease.sandbox_id} was lost while it was connected to")
            self._guest = guest
            if self.recovers:
                if self._follower is not None:
                    self._follower.cancel()
                self._follower = asyncio.create_task(self._follow(guest), name=f"connection of {lease.id}")
            return guest

    async def _follow(self, guest: GuestClient) -> None:
        """An ended connection is the first sign of a death. Found out at once, also while nobody calls."""
        await guest.wait_closed()
        if self._guest is not guest or self.lost is not None:
            return
        self._follower = None  # so that connecting anew does not cancel this very task
        lease = self._lease
        try:
            await self._connect()
        except RockError as error:
            # While it tried, the lease may have gone on to another sandbox, which is none the worse for it.
            if lease is not None and self._lease is lease:
                self.lose(error)
