"""Leases: granting, prolonging, ending, and surviving a restart.

Invariants: a lease is stored before its holder hears of it; a sandbox whose lease ended is released, whatever ended
it; a lease whose sandbox failed ends at once, and its holder is told why when it asks next.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from rock.control.catalog import Catalog
from rock.control.history import History
from rock.control.nodes import NodeBook
from rock.domain.clock import Clock
from rock.domain.errors import InvalidRequest, LeaseExpired, SandboxLost, StorageError
from rock.domain.leases import Held, LeaseBook
from rock.domain.sandbox import SandboxState
from rock.store.fleet import FleetStore, StoredLease
from rock.wire.handle import HeldLease, token_sha256
from rock.wire.models import EventView, LeaseRequest, LeaseView, SandboxSpec, SandboxView

log = logging.getLogger(__name__)

_HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})
_FIRST_EPOCH = 1
_SPEC_FRESH_S = 2.0


@dataclass(slots=True)
class Counters:
    granted: int = 0
    released: int = 0
    expired: int = 0
    lost: int = 0
    refused: int = 0


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
        self._store = store
        self._history = history
        self._catalog = catalog
        self._pool_sizes = dict(pools)
        self._clock = clock
        self._book = LeaseBook()
        self._stored: dict[str, StoredLease] = {}
        self._to_end: dict[str, str] = {}
        self._pool_specs: dict[str, SandboxSpec] = {}
        self._env_specs: dict[str, tuple[float, SandboxSpec]] = {}
        self.counters = Counters()

    def __len__(self) -> int:
        return len(self._book)

    # --- granting

    async def create(self, request: LeaseRequest) -> LeaseView:
        spec, env = await self._spec_of(request)
        node = await self._nodes.choose(spec)
        if not spec.image:
            spec = spec.model_copy(update={"image": node.default_image})
        lease_id, token = f"ls-{secrets.token_hex(6)}", secrets.token_urlsafe(24)
        try:
            sandbox = await node.claim(
                spec,
                lease_id=lease_id,
                token_sha256=token_sha256(token),
                epoch=_FIRST_EPOCH,
                run_id=request.run_id,
                wait_s=request.wait_s,
            )
        except Exception:
            self.counters.refused += 1
            raise
        now = datetime.now(UTC)
        lease = StoredLease(
            lease_id,
            sandbox.id,
            node.name,
            _FIRST_EPOCH,
            token_sha256(token),
            request.ttl_s,
            request.run_id,
            env,
            spec,
            request.labels,
            now,
        )
        self._book.grant(
            lease_id, sandbox.id, node=node.name, epoch=_FIRST_EPOCH, ttl_s=request.ttl_s, now=self._clock.now()
        )
        self._stored[lease_id] = lease
        try:
            await self._store.add_lease(lease)
        except (StorageError, asyncio.CancelledError):
            await self.release(lease_id, reason="the lease could not be stored")
            raise
        self.counters.granted += 1
        return self._view(lease, token)

    async def _spec_of(self, request: LeaseRequest) -> tuple[SandboxSpec, str]:
        """The spec and the environment's name. Without an image the node that is chosen says which."""
        if request.env:
            if request.image or request.spec is not None:
                raise InvalidRequest("a lease names either an environment or an image, not both", hint="Drop one.")
            return await self._env_spec(request.env), request.env
        if request.spec is not None:
            if request.image and request.image != request.spec.image:
                raise InvalidRequest(f"image {request.image!r} is not that of the spec, {request.spec.image!r}")
            return request.spec, ""
        return SandboxSpec(image=request.image), ""

    async def _env_spec(self, env: str) -> SandboxSpec:
        """Reading an environment's files costs more than a claim; a new build may be seen this little later."""
        now = self._clock.now()
        known = self._env_specs.get(env)
        if known is not None and now - known[0] < _SPEC_FRESH_S:
            return known[1]
        spec = await asyncio.to_thread(self._catalog.spec, env)
        await self._keep_warm(env, spec)
        self._env_specs[env] = (now, spec)
        return spec

    async def _keep_warm(self, env: str, spec: SandboxSpec) -> None:
        """The first lease of an environment fills its pool; a newly built one drains the pool of its predecessor."""
        before = self._pool_specs.get(env)
        if before == spec:
            return
        size = self._pool_sizes.get(env)
        if size is None:
            size = await asyncio.to_thread(self._catalog.pool_size, env)
        self._pool_specs[env] = spec
        for node in self._nodes:
            if before is not None:
                await node.set_pool(before, 0)
            await node.set_pool(spec, size)

    async def warm(self) -> None:
        """Fill the pools that were asked for at the start; none of them if one cannot be."""
        specs = {env: await asyncio.to_thread(self._catalog.spec, env) for env in self._pool_sizes}
        for env, spec in specs.items():
            await self._keep_warm(env, spec)

    # --- holding

    def views(self) -> list[LeaseView]:
        return [self._view(self._stored[held.lease_id]) for held in self._book.held()]

    def heartbeat(self, lease_id: str) -> LeaseView:
        """Raises LeaseExpired, SandboxLost or NotFound."""
        self._book.heartbeat(lease_id, self._clock.now())
        return self._view(self._stored[lease_id])

    def _view(self, lease: StoredLease, token: str = "") -> LeaseView:
        return LeaseView(
            id=lease.id,
            sandbox_id=lease.sandbox_id,
            epoch=lease.epoch,
            token=token,
            endpoint=self._nodes.get(lease.node).endpoint(lease.sandbox_id),
            ttl_s=lease.ttl_s,
            created_at=lease.created_at,
            run_id=lease.run_id,
            env=lease.env,
            image=lease.spec.image,
        )

    # --- ending

    async def release(self, lease_id: str, *, reason: str = "released") -> None:
        """Idempotent; a lease that never was is NotFound."""
        held = self._end(lease_id, reason=reason)
        if held is not None:
            self.counters.released += 1
            await self._nodes.get(held.node).release(held.sandbox_id, reason=reason)
            return
        with suppress(LeaseExpired, SandboxLost):  # it has ended before: that is what the caller wants
            self._book.get(lease_id)

    def _end(self, lease_id: str, *, reason: str, sandbox_failed: bool = False) -> Held | None:
        held = self._book.end(lease_id, reason=reason, sandbox_failed=sandbox_failed)
        if held is not None:
            self._stored.pop(lease_id, None)
            self._to_end[lease_id] = reason
        return held

    async def release_sandbox(self, sandbox_id: str, *, reason: str) -> bool:
        """End the lease that holds the sandbox; False if none does."""
        held = self._book.of_sandbox(sandbox_id)
        if held is None:
            return False
        await self.release(held.lease_id, reason=reason)
        return True

    def sandbox_changed(self, view: SandboxView) -> None:
        """The node's hint that a sandbox changed: a lease does not outlive its sandbox."""
        if view.state in _HELD or not view.lease_id:
            return
        held = self._book.of_sandbox(view.id)
        if held is not None:
            self._lost(held, _why(view))

    def _lost(self, held: Held, why: str) -> None:
        lease = self._stored.get(held.lease_id)
        if self._end(held.lease_id, reason=why, sandbox_failed=True) is not None:
            self.counters.lost += 1
            run_id = lease.run_id if lease else ""
            self._event("lease.lost", held.lease_id, f"sandbox {held.sandbox_id}: {why}", held.node, run_id)

    async def expire(self) -> None:
        """End the leases whose holders have fallen silent, and release their sandboxes."""
        for held in self._book.expired(self._clock.now()):
            lease = self._stored.get(held.lease_id)
            reason = f"no heartbeat within {held.ttl_s:g} s"
            if self._end(held.lease_id, reason=reason) is None:
                continue
            self.counters.expired += 1
            self._event("lease.expired", held.lease_id, reason, held.node, lease.run_id if lease else "")
            await self._nodes.get(held.node).release(held.sandbox_id, reason=reason)

    async def reconcile(self) -> None:
        """Behind the nodes' hints: no lease without a living sandbox, no leased sandbox without a lease."""
        asked_at = {held.lease_id for held in self._book.held()}
        for node in self._nodes:
            alive = {view.id: view for view in await node.sandboxes()}
            for held in self._book.held():
                if held.node == node.name and held.lease_id in asked_at:
                    view = alive.get(held.sandbox_id)
                    if view is None or view.state not in _HELD:
                        self._lost(held, "the sandbox is gone")

    async def store_ended(self) -> None:
        """Write down the ends that were not yet written. Raises StorageError; then they are kept for the next time."""
        batch = dict(self._to_end)
        if batch:
            await self._store.end_leases(batch, datetime.now(UTC))
            for lease_id in batch:
                self._to_end.pop(lease_id, None)

    def _event(self, kind: str, subject: str, detail: str, node: str, run_id: str) -> None:
        self._history.add_event(
            EventView(at=datetime.now(UTC), kind=kind, subject=subject, detail=detail, node=node, run_id=run_id)
        )

    # --- after a restart

    async def recover(self) -> None:
        """Adopt the sandboxes of stored leases; end the leases whose sandbox did not survive.

        Adopted leases get their whole time-to-live anew: their holders could not reach us to prolong them.
        """
        stored = await self._store.living_leases()
        for node in self._nodes:
            ours = [lease for lease in stored if lease.node == node.name]
            held = [
                HeldLease(
                    lease.id,
                    lease.sandbox_id,
                    lease.token_sha256,
                    lease.epoch,
                    lease.run_id,
                    lease.spec,
                    lease.created_at,
                )
                for lease in ours
            ]
            adopted = set(await node.adopt(held))
            for lease in ours:
                if lease.id in adopted:
                    self._adopt(lease)
                else:
                    self._to_end[lease.id] = "its sandbox did not survive the restart"
        for lease in stored:
            if lease.node not in self._nodes:
                self._to_end[lease.id] = f"node {lease.node} has not come back"
        await self.store_ended()

    def _adopt(self, lease: StoredLease) -> None:
        self._book.grant(
            lease.id, lease.sandbox_id, node=lease.node, epoch=lease.epoch, ttl_s=lease.ttl_s, now=self._clock.now()
        )
        self._stored[lease.id] = lease


def _why(view: SandboxView) -> str:
    if view.evidence is None:
        return str(view.state)
    return f"{view.evidence.cause}: {view.evidence.detail}" if view.evidence.detail else view.evidence.cause
