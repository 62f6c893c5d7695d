"""Leases: granting, prolonging, recovering, ending, and surviving a restart.

Invariants: a lease is stored before its holder hears of it; a sandbox whose lease ended, or has moved to another one,
is ended, whoever missed it at first; a lease whose sandbox failed ends at once, with the reason for its holder, unless
it recovers: then the search for another sandbox begins at once, whether its holder has noticed or not.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import inf

from rock.control.admission import Quota, check_time
from rock.control.catalog import Catalog
from rock.control.comparing import Comparison
from rock.control.history import History
from rock.control.keys import OWNER, Caller
from rock.control.lease_records import LeaseRecords, held_lease
from rock.control.measures import Counters
from rock.control.nodes import NodeBook
from rock.control.offers import Offers
from rock.control.once import Once
from rock.control.rebinding import HELD, Rebinding
from rock.control.snapshots import Snapshots
from rock.domain.clock import Clock
from rock.domain.errors import LeaseExpired, Recovering, RockError, SandboxLost, StorageError
from rock.domain.leases import Held, LeaseBook
from rock.store.fleet import FleetStore, StoredLease
from rock.wire.handle import NodeHandle, token_sha256
from rock.wire.models import (
    Endpoint,
    EventView,
    LeaseRequest,
    LeaseView,
    RecoverRequest,
    RecoveryReport,
    SandboxView,
)

log = logging.getLogger(__name__)


class LeaseService:
    def __init__(
        self,
        nodes: NodeBook,
        store: FleetStore,
        history: History,
        catalog: Catalog,
        *,
        pools: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self._nodes = nodes
        self._history = history
        self._clock = clock
        self.offers = Offers(nodes, catalog, pools, clock)
        self._book = LeaseBook()
        self._records = LeaseRecords(store)
        self._claims: dict[str, int] = {}
        self._quota = Quota()
        self._once: Once[LeaseView] = Once(clock)
        self.snapshots = Snapshots(nodes, self._book, self._records, clock)
        self._rebinding = Rebinding(
            nodes,
            self._book,
            self._records,
            self.snapshots,
            self._claims,
            clock,
            done=self._rebound,
            given_up=self._given_up,
        )
        self.counters = Counters()
        self._comparison = Comparison(
            nodes, self._book, self._claims, self._rebinding.condemned, lost=self._lost, event=self._event
        )

    def __len__(self) -> int:
        return len(self._book)

    async def close(self) -> None:
        """End what is under way. Leases in recovery stay stored, and are taken up by :meth:`recover`."""
        await self._rebinding.close()
        await self.snapshots.close()

    # --- granting

    async def create(self, request: LeaseRequest, caller: Caller = OWNER, *, once: str = "") -> LeaseView:
        """``once``: asked again with the same word, the answer is the same lease."""
        if once:
            return await self._once.do(caller.key_id, once, request, lambda: self._create(request, caller))
        return await self._create(request, caller)

    async def withdraw(self, caller: Caller, once: str) -> None:
        """Nobody wants any more what was asked with ``once``: its claim ends, or the lease that came of it."""
        lease = await self._once.withdraw(caller.key_id, once)
        if lease is not None:
            await self.release(lease.id, reason="withdrawn: its client gave up")

    async def _create(self, request: LeaseRequest, caller: Caller) -> LeaseView:
        offer = await self.offers.of(request)
        check_time(request, offer.env)
        await self._records.ready()
        lease_id, token = f"ls-{secrets.token_hex(6)}", secrets.token_urlsafe(24)
        began = self._clock.now()
        self._claims[lease_id] = 0

        async def claim(node: NodeHandle, wait_s: float) -> SandboxView:
            # One of its own for every node asked: one that broke off may hold what it got for the last.
            self._claims[lease_id] += 1
            image = offer.spec.image or node.default_image
            return await node.claim(
                offer.spec.model_copy(update={"image": image}),
                lease_id=lease_id,
                token_sha256=token_sha256(token),
                epoch=self._claims[lease_id],
                run_id=request.run_id,
                wait_s=wait_s,
            )

        try:
            with self._quota.granting(caller, self._held_by(caller)):
                node, sandbox = await self._nodes.place(offer.spec, claim, request.wait_s)
                lease = StoredLease(
                    lease_id,
                    sandbox.id,
                    node.name,
                    self._claims[lease_id],
                    token_sha256(token),
                    request.ttl_s,
                    request.run_id,
                    request.env,
                    sandbox.spec,
                    request.labels,
                    datetime.now(UTC),
                    offer.recovery,
                    key_id=caller.key_id,
                    needs_s=request.needs_s,
                    image=sandbox.spec.image,
                )
                self._hold(lease)
        except Exception:
            self.counters.refused += 1
            raise
        finally:
            del self._claims[lease_id]
        try:
            await self._records.add(lease)
        except (StorageError, asyncio.CancelledError):
            await self.release(lease_id, reason="the lease could not be stored")
            raise
        self.counters.granted += 1
        self.counters.claim_seconds.observe(self._clock.now() - began)
        if offer.env is None:
            return self._view(lease, token)
        declared = {"snapshot_every": offer.env.snapshot_every, "judge": offer.env.judge}
        return self._view(lease, token).model_copy(update=declared)

    def _held_by(self, caller: Caller) -> int:
        return sum(lease.key_id == caller.key_id for lease in self._records) if caller.max_leases else 0

    def _hold(self, lease: StoredLease) -> Held:
        held_s = (datetime.now(UTC) - lease.created_at).total_seconds()
        held = self._book.grant(
            lease.id,
            lease.sandbox_id,
            node=lease.node,
            epoch=lease.epoch,
            ttl_s=lease.ttl_s,
            now=self._clock.now(),
            recovers=lease.recovery != "none",
            recoveries=lease.recoveries,
            ends_at=self._clock.now() + lease.needs_s - held_s if lease.needs_s else inf,
        )
        self._records.know(lease)
        return held

    async def warm(self) -> None:
        """Fill the pools that were asked for at the start."""
        await self.offers.warm()

    # --- holding

    def views(self) -> list[LeaseView]:
        return [self._view(lease) for lease in self._records]

    def heartbeat(self, lease_id: str) -> LeaseView:
        """Raises LeaseExpired, SandboxLost or NotFound."""
        self._book.heartbeat(lease_id, self._clock.now())
        return self._view_of(lease_id)

    def _view_of(self, lease_id: str) -> LeaseView:
        lease = self._records.get(lease_id)
        assert lease is not None, lease_id  # the book and the records hold the same leases
        return self._view(lease)

    def _view(self, lease: StoredLease, token: str = "") -> LeaseView:
        node = self._nodes.get(lease.node) if lease.node in self._nodes else None
        return LeaseView(
            id=lease.id,
            sandbox_id=lease.sandbox_id,
            epoch=lease.epoch,
            token=token,
            endpoint=node.endpoint(lease.sandbox_id) if node is not None else Endpoint(node=lease.node),
            ttl_s=lease.ttl_s,
            created_at=lease.created_at,
            run_id=lease.run_id,
            env=lease.env,
            image=lease.spec.image,
            recovery=lease.recovery,
            recoveries=lease.recoveries,
            recovering=not self._book.get(lease.id).bound,
            snapshot=lease.spec.image if lease.spec.from_snapshot else "",
            latest_snapshot=lease.snapshot,
        )

    # --- losing a sandbox, and recovering

    def sandbox_changed(self, view: SandboxView) -> None:
        """The node's hint that a sandbox changed: nobody holds one that failed."""
        if view.state in HELD or not view.lease_id:
            return
        self._rebinding.sandbox_over(view.id)
        held = self._book.of_sandbox(view.id)
        if held is not None:
            self._lost(held, _why(view))

    def node_lost(self, name: str, why: str) -> None:
        """The node is dead: whatever it holds is lost, whether or not it runs on somewhere out of reach."""
        for held in self._book.held():
            if held.node == name and held.bound:
                self._lost(held, f"node {name} is lost: {why}")

    async def readopt(self, node: NodeHandle) -> None:
        """The node was away, or was started again: tell it which leases are its own, and learn which it has lost."""
        ours = [held for held in self._book.held() if held.bound and held.node == node.name]
        records = [lease for held in ours if (lease := self._records.get(held.lease_id)) is not None]
        good = set(await node.adopt([held_lease(lease) for lease in records]))
        for held in ours:
            if held.lease_id not in good:
                self._lost(held, f"it did not survive the absence of node {node.name}")
        with suppress(RockError):
            await self.snapshots.sweep(node)

    def drain(self, name: str, why: str) -> int:
        """Begin to move the leases on the node that can be moved; how many it still has."""
        for held in self._book.held():
            if held.node == name:
                self._move(held, why)
        return sum(1 for held in self._book.held() if held.node == name and held.bound)

    async def rebind(self, lease_id: str, request: RecoverRequest) -> LeaseView:
        """The lease with the sandbox that took the place of the one of ``request.epoch``. Idempotent.

        The holder may be the first to know of the loss; its word is taken for it, and for what it can go on from.
        Raises: LeaseExpired, NotFound; SandboxLost when it does not recover; Recovering after ``wait_s``.
        """
        if request.snapshot is not None:
            await self.snapshots.keep_only(lease_id, request.snapshot)
        held = self._book.catch_up(lease_id, request.epoch)
        if held.bound and held.epoch == request.epoch:
            self._lost(held, f"its holder says: {request.why}" if request.why else "its holder says so")
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
        return self._view_of(lease_id)

    def _suits(self, held: Held, request: RecoverRequest) -> bool:
        """Whether it is bound, and to a sandbox that its holder can go on in: one that was made of a snapshot whose
        answer never reached the holder is another's state to it."""
        if not held.bound:
            return False
        lease = self._records.get(held.lease_id)
        assert lease is not None, held.lease_id
        if request.snapshot is None or not lease.spec.from_snapshot or lease.spec.image == request.snapshot:
            return True
        self._lost(held, "it was made of a snapshot that its holder does not know")
        return False

    def recovered(self, lease_id: str, report: RecoveryReport) -> None:
        """Its holder has replayed the episode, or failed to."""
        lease = self._records.get(lease_id)
        node, run_id = (lease.node, lease.run_id) if lease else ("", "")
        kind = "lease.recovered" if report.verdict == "resumed" else "lease.diverged"
        self._event(kind, lease_id, report.sentence, node, run_id)

    def _lost(self, held: Held, why: str) -> None:
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
            self.counters.recovered += 1
            self.counters.by_cause[why.partition(":")[0]] += 1
        detail = f"sandbox {lease.sandbox_id} under epoch {lease.epoch}, found in {took_s:.3f} s; before: {why}"
        self._event("lease.rebound", lease.id, detail, lease.node, lease.run_id)

    def _given_up(self, lease_id: str, why: str) -> None:
        held = self._book.end(lease_id, reason=why, sandbox_failed=True)
        if held is not None:
            self._ended_in_loss(held, why)

    def _ended_in_loss(self, held: Held, why: str) -> None:
        lease = self._records.end(held.lease_id, why)
        self.counters.lost += 1
        run_id = lease.run_id if lease else ""
        self._event("lease.lost", held.lease_id, f"sandbox {held.sandbox_id}: {why}", held.node, run_id)

    # --- ending

    async def release(self, lease_id: str, *, reason: str = "released") -> None:
        """Idempotent; a lease that never was is NotFound."""
        held = self._book.end(lease_id, reason=reason)
        if held is not None:
            self.counters.released += 1
            self._records.end(lease_id, reason)
            await self._let_go(held, reason)
            return
        with suppress(LeaseExpired, SandboxLost):  # it has ended before: that is what the caller wants
            self._book.get(lease_id)

    async def _let_go(self, held: Held, reason: str) -> None:
        """What a node does not hear now it is told by the periodic comparison."""
        self._rebinding.cancel(held.lease_id)
        if held.bound and held.node in self._nodes:
            try:
                await self._nodes.get(held.node).release(held.sandbox_id, reason=reason)
            except RockError as error:
                log.warning("sandbox=%s could not be released yet: %s", held.sandbox_id, error)

    async def release_sandbox(self, sandbox_id: str, *, reason: str) -> bool:
        """End the lease that holds the sandbox; False if none does."""
        held = self._book.of_sandbox(sandbox_id)
        if held is None:
            return False
        await self.release(held.lease_id, reason=reason)
        return True

    async def expire(self) -> None:
        """End the leases whose holders have fallen silent, or whose time is up, and release their sandboxes."""
        now = self._clock.now()
        for held in self._book.expired(now):
            reason = held.over(now)
            if self._book.end(held.lease_id, reason=reason) is None:
                continue
            lease = self._records.end(held.lease_id, reason)
            self.counters.expired += 1
            self._event("lease.expired", held.lease_id, reason, held.node, lease.run_id if lease else "")
            await self._let_go(held, reason)

    async def store_ended(self) -> None:
        """Write down what was not yet written. Raises StorageError; then it is kept for the next time."""
        await self._records.flush()

    def _event(self, kind: str, subject: str, detail: str, node: str, run_id: str) -> None:
        self._history.add_event(
            EventView(at=datetime.now(UTC), kind=kind, subject=subject, detail=detail, node=node, run_id=run_id)
        )

    async def reconcile(self) -> None:
        """Behind the nodes' hints: no lease without a living sandbox, no leased sandbox without its lease."""
        await self._comparison.run()

    # --- after a restart

    async def recover(self) -> None:
        """Adopt the sandboxes of stored leases; of the others, recover those that can and end the rest.

        Adopted leases get their whole time-to-live anew: their holders could not reach us to prolong them.
        """
        stored = await self._records.stored()
        for node in self._nodes:
            ours = [lease for lease in stored if lease.node == node.name]
            adopted = set(await node.adopt([held_lease(lease) for lease in ours]))
            for lease in ours:
                self.adopt(lease, "" if lease.id in adopted else "its sandbox did not survive the restart")
        for lease in stored:
            if lease.node not in self._nodes:
                self.adopt(lease, f"node {lease.node} has not come back")
        await self.snapshots.sweep_all()
        await self.store_ended()

    def adopt(self, lease: StoredLease, lost: str = "") -> None:
        """Take a stored lease over. ``lost``: why its sandbox is no more; empty if it lives."""
        held = self._hold(lease)
        if lost:
            self._lost(held, lost)


def _why(view: SandboxView) -> str:
    if view.evidence is None:
        return str(view.state)
    return f"{view.evidence.cause}: {view.evidence.detail}" if view.evidence.detail else view.evidence.cause
