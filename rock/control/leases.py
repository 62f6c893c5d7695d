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
from rock.control.losses import Losses
from rock.control.measures import Counters
from rock.control.nodes import NodeBook
from rock.control.offers import Offers
from rock.control.once import Once
from rock.control.snapshots import Snapshots
from rock.domain.clock import Clock
from rock.domain.errors import LeaseExpired, RockError, SandboxLost, StorageError
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
        self.counters = Counters()
        self.losses = Losses(
            nodes, self._book, self._records, self.snapshots, self._claims, clock, self.counters, self._event
        )
        self._let_go_now: set[str] = set()
        self._comparison = Comparison(
            nodes, self._book, self._claims, self._condemned, lost=self.losses.lost, event=self._event
        )

    def __len__(self) -> int:
        return len(self._book)

    async def close(self) -> None:
        """End what is under way. Leases in recovery stay stored, and are taken up by :meth:`recover`."""
        await self.losses.close()
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
        declared = {"snapshot_every": offer.env.snapshot_every, "judge": offer.env.judge, "task": offer.task}
        return self._view(lease, token).model_copy(update=declared)

    def _held_by(self, caller: Caller) -> int:
        return sum(lease.key_id == caller.key_id for lease in self._records) if caller.max_leases else 0

    def _hold(self, lease: StoredLease, *, stored: bool = False) -> Held:
        """``stored``: by an earlier process, which may have gone on to epochs that it could not write down. It cannot
        have made more than one attempt a millisecond, so that what is counted from here is beyond all of them."""
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
            next_epoch=int(held_s * 1000) if stored else 0,
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

    # --- losing its sandbox, and recovering: see `Losses`

    async def rebind(self, lease_id: str, request: RecoverRequest) -> LeaseView:
        """The lease with the sandbox that took the place of the one of ``request.epoch``. Idempotent.

        The holder may be the first to know of the loss; its word is taken for it, and for what it can go on from.
        Raises: LeaseExpired, NotFound; SandboxLost when it does not recover; Recovering after ``wait_s``.
        """
        await self.losses.rebind(lease_id, request)
        return self._view_of(lease_id)

    def recovered(self, lease_id: str, report: RecoveryReport) -> None:
        """Its holder has replayed the episode, or failed to."""
        lease = self._records.get(lease_id)
        node, run_id = (lease.node, lease.run_id) if lease else ("", "")
        kind = "lease.recovered" if report.verdict == "resumed" else "lease.diverged"
        self._event(kind, lease_id, report.sentence, node, run_id)

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
        self.losses.forget(held.lease_id)
        if held.bound and held.node in self._nodes:
            self._let_go_now.add(held.sandbox_id)
            try:
                await self._nodes.get(held.node).release(held.sandbox_id, reason=reason)
            except RockError as error:
                log.warning("sandbox=%s could not be released yet: %s", held.sandbox_id, error)
            finally:
                self._let_go_now.discard(held.sandbox_id)

    def _condemned(self, sandbox_id: str) -> bool:
        """Whether somebody is about to end it already."""
        return sandbox_id in self._let_go_now or self.losses.condemned(sandbox_id)

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
        held = self._hold(lease, stored=True)
        if lost:
            self.losses.lost(held, lost)
