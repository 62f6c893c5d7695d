"""What becomes of a lease when its sandbox is lost, or is to be left: it goes on in another one, or it ends.

Invariants: a lease whose sandbox failed ends at once, with the reason for its holder, unless it recovers: then the
search for another sandbox begins at once, whether its holder has noticed or not; a sandbox whose lease has moved on is
ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from rock.control.lease_records import LeaseRecords, held_lease
from rock.control.measures import Counters
from rock.control.nodes import NodeBook
from rock.control.rebinding import HELD, Rebinding
from rock.control.snapshots import Snapshots
from rock.domain.clock import Clock
from rock.domain.errors import Conflict, LeaseExpired, Recovering, RockError, SandboxLost
from rock.domain.leases import Held, LeaseBook
from rock.domain.sandbox import LIVING
from rock.store.fleet import StoredLease
from rock.wire.handle import NodeHandle
from rock.wire.models import RecoverRequest, RestartRequest, RestartView, SandboxView


class Losses:
    """``claims``: those under way, by lease; ``event(kind, subject, detail, node, run_id)`` is told what happens."""

    def __init__(
        self,
        nodes: NodeBook,
        book: LeaseBook,
        records: LeaseRecords,
        snapshots: Snapshots,
        claims: dict[str, int],
        clock: Clock,
        counters: Counters,
        event: Callable[[str, str, str, str, str], None],
    ) -> None:
        self._nodes = nodes
        self._book = book
        self._records = records
        self._snapshots = snapshots
        self._clock = clock
        self._counters = counters
        self._event = event
        self._rebinding = Rebinding(
            nodes, book, records, snapshots, claims, clock, done=self._rebound, given_up=self._given_up
        )

    async def close(self) -> None:
        """End what is under way."""
        await self._rebinding.close()

    def forget(self, lease_id: str) -> None:
        """The lease has ended: nobody looks for another sandbox any more."""
        self._rebinding.cancel(lease_id)

    def condemned(self, sandbox_id: str) -> bool:
        """Whether it lost its lease and is about to be ended."""
        return self._rebinding.condemned(sandbox_id)

    # --- what nodes and holders say

    def sandbox_changed(self, view: SandboxView) -> None:
        """The node's hint that a sandbox changed: nobody holds one that failed."""
        if view.state in HELD or not view.lease_id:
            return
        self._rebinding.sandbox_over(view.id)
        held = self._book.of_sandbox(view.id)
        if held is not None:
            self.lost(held, _why(view))

    def node_lost(self, name: str, why: str) -> None:
        """The node is dead: whatever it holds is lost, whether or not it runs on somewhere out of reach."""
        for held in self._book.held():
            if held.node == name and held.bound:
                self.lost(held, f"node {name} is lost: {why}")

    async def readopt(self, node: NodeHandle) -> None:
        """The node was away, or was started again: tell it which leases are its own, and learn which it has lost."""
        ours = [held for held in self._book.held() if held.bound and held.node == node.name]
        records = [lease for held in ours if (lease := self._records.get(held.lease_id)) is not None]
        good = set(await node.adopt([held_lease(lease) for lease in records]))
        for held in ours:
            if held.lease_id not in good:
                self.lost(held, f"it did not survive the absence of node {node.name}")
        with suppress(RockError):
            await self._snapshots.sweep(node)

    def drain(self, name: str, why: str) -> int:
        """Begin to move the leases on the node that can be moved; how many it still has."""
        for held in self._book.held():
            if held.node == name:
                self._move(held, why)
        return sum(1 for held in self._book.held() if held.node == name and held.bound)

    async def rebind(self, lease_id: str, request: RecoverRequest) -> None:
        """Return once the lease has a sandbox that its holder can go on in. See `LeaseService.rebind`."""
        if request.snapshot is not None:
            await self._snapshots.keep_only(lease_id, request.snapshot)
        held = self._book.catch_up(lease_id, request.epoch)
        if held.bound and held.epoch == request.epoch:
            self.lost(held, f"its holder says: {request.why}" if request.why else "its holder says so")
        deadline = asyncio.get_running_loop().time() + request.wait_s
        while not self._suits(self._book.get(lease_id), request):
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise Recovering(
                    f"lease {lease_id} has no other sandbox after {request.wait_s:g} s",
                    hint="Ask again, or release it.",
                )
            await self._rebinding.wait(lease_id, left_s)
        # Bound, but perhaps not yet stored: nobody hears of what a crash could still forget.
        await self._rebinding.wait(lease_id, max(0.0, deadline - asyncio.get_running_loop().time()))
        self._book.get(lease_id)

    def _suits(self, held: Held, request: RecoverRequest) -> bool:
        """Whether it is bound, and to a sandbox that its holder can go on in: one that was made of a snapshot whose
        answer never reached the holder is another's state to it."""
        if not held.bound:
            return False
        lease = self._records.get(held.lease_id)
        assert lease is not None, held.lease_id
        if request.snapshot is None or not lease.spec.from_snapshot or lease.spec.image == request.snapshot:
            return True
        self.lost(held, "it was made of a snapshot that its holder does not know")
        return False

    # --- what an operator asks for

    async def restart(self, view: SandboxView, request: RestartRequest) -> RestartView:
        """End the sandbox as `view` shows it; a lease on it that recovers goes on in another, as in a move.

        Raises: Conflict when it has ended, is starting or is changing hands, and when its lease does not recover,
        unless ``force`` lets that be lost; PlatformUnavailable when its node does not answer.
        """
        why = "restarted by request" + (f": {request.reason}" if request.reason else "")
        held = self._book.of_sandbox(view.id)
        if held is None:
            return await self._restart_unleased(view, why)
        if held.recovers:
            self._restarted(view, f"lease {held.lease_id} moves; {why}")
            self._move(held, why)
            await self._rebinding.wait(held.lease_id, request.wait_s)
            return self._moved(view, held.lease_id)
        if not request.force:
            raise Conflict(
                f"sandbox {view.id} cannot be restarted: lease {held.lease_id} on it does not recover, so its episode "
                "would be lost",
                hint="Say `force` (`rock sandbox restart --force`) to lose it: a void episode is never scored.",
            )
        self._restarted(view, f"lease {held.lease_id} is lost; {why}")
        self._given_up(held.lease_id, why)
        self._rebinding.discard(held.node, held.sandbox_id, why, evidence_s=0.0)
        return RestartView(sandbox_id=view.id, outcome="lost", lease_id=held.lease_id, node=view.node)

    def _moved(self, view: SandboxView, lease_id: str) -> RestartView:
        replacement = ""
        try:
            held = self._book.get(lease_id)
        except SandboxLost:
            return RestartView(sandbox_id=view.id, outcome="lost", lease_id=lease_id, node=view.node)
        except LeaseExpired:
            pass  # its holder has given it back meanwhile
        else:
            replacement = held.sandbox_id if held.bound else ""
        return RestartView(
            sandbox_id=view.id, outcome="moved", lease_id=lease_id, replacement=replacement, node=view.node
        )

    async def _restart_unleased(self, view: SandboxView, why: str) -> RestartView:
        if view.state not in LIVING:
            raise Conflict(f"sandbox {view.id} is {view.state} already", hint="`rock ps` lists the living ones.")
        if view.state in HELD:
            raise Conflict(
                f"sandbox {view.id} is changing hands: lease {view.lease_id} is coming or going",
                hint="Ask again in a moment.",
            )
        # Claimed between the look and this, its lease loses it as by `rock sandbox rm`, and recovers if it can.
        await self._nodes.get(view.node).release(view.id, reason=why)
        self._restarted(view, f"its pool starts another; {why}")
        return RestartView(sandbox_id=view.id, outcome="ended", node=view.node)

    def _restarted(self, view: SandboxView, detail: str) -> None:
        self._event("sandbox.restarted", view.id, detail, view.node, view.run_id)

    # --- losing and moving

    def lost(self, held: Held, why: str) -> None:
        """Its sandbox is no more: it is bound to another, or ends."""
        outcome = self._book.lose(held.lease_id, held.epoch, reason=why, now=self._clock.now())
        if isinstance(outcome, Held):
            lease = self._records.get(held.lease_id)
            assert lease is not None, held.lease_id
            detail = f"sandbox {held.sandbox_id}: {why}"
            self._event("lease.recovering", held.lease_id, detail, held.node, lease.run_id)
            self._rebinding.begin(lease, why)
        elif outcome is not None:
            self._rebinding.discard(held.node, held.sandbox_id, why)
            self._ended_in_loss(held, outcome.reason)

    def _move(self, held: Held, why: str) -> None:
        """To another sandbox, off one that is well: neither a loss nor evidence of anything."""
        if self._book.move(held.lease_id, held.epoch) is None:
            return
        lease = self._records.get(held.lease_id)
        assert lease is not None, held.lease_id
        self._event("lease.moving", held.lease_id, f"sandbox {held.sandbox_id}: {why}", held.node, lease.run_id)
        self._rebinding.begin(lease, why, lost=False)

    def _rebound(self, lease: StoredLease, why: str, took_s: float, lost: bool) -> None:
        if lost:
            self._counters.recovered += 1
            self._counters.by_cause[why.partition(":")[0]] += 1
        detail = f"sandbox {lease.sandbox_id} under epoch {lease.epoch}, found in {took_s:.3f} s; before: {why}"
        self._event("lease.rebound", lease.id, detail, lease.node, lease.run_id)

    def _given_up(self, lease_id: str, why: str) -> None:
        held = self._book.end(lease_id, reason=why, sandbox_failed=True)
        if held is not None:
            self._ended_in_loss(held, why)

    def _ended_in_loss(self, held: Held, why: str) -> None:
        lease = self._records.end(held.lease_id, why)
        self._counters.lost += 1
        run_id = lease.run_id if lease else ""
        self._event("lease.lost", held.lease_id, f"sandbox {held.sandbox_id}: {why}", held.node, run_id)


def _why(view: SandboxView) -> str:
    if view.evidence is None:
        return str(view.state)
    return f"{view.evidence.cause}: {view.evidence.detail}" if view.evidence.detail else view.evidence.cause
