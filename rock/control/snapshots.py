"""What is kept of the sandboxes of leases that recover by snapshot: taken for the holder, one per lease, and removed.

Invariants: a lease has at most one snapshot that the next sandbox may be made of, and it is one whose answer came while
the lease was bound under the epoch it was asked for; every other one is removed, at the latest by :meth:`sweep`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rock.control.lease_records import LeaseRecords
from rock.control.nodes import NodeBook
from rock.domain.clock import Clock
from rock.domain.errors import Conflict, InvalidRequest, NotFound, RockError, StaleEpoch, StorageError
from rock.domain.leases import LeaseBook
from rock.store.fleet import StoredLease
from rock.wire.handle import NodeHandle
from rock.wire.models import SNAPSHOT_PREFIX, SnapshotRequest, SnapshotView

log = logging.getLogger(__name__)

_REFUSALS = (InvalidRequest, NotFound, StaleEpoch, StorageError)
"""After these nothing can have been made."""
# A sandbox that was made of a snapshot holds on to it until it is removed itself.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
# After that it is left to the sweep: its node is away for longer, or somebody else uses the image.
_TRY_FOR_S = 60.0


@dataclass(frozen=True, slots=True)
class _Taking:
    name: str
    work: asyncio.Task[SnapshotView]


@dataclass(frozen=True, slots=True)
class _Owed:
    node: str
    until: float


class Snapshots:
    def __init__(self, nodes: NodeBook, book: LeaseBook, records: LeaseRecords, clock: Clock) -> None:
        self._nodes = nodes
        self._book = book
        self._records = records
        self._clock = clock
        self._taking: dict[str, _Taking] = {}
        self._owed: dict[str, _Owed] = {}
        self._remover: asyncio.Task[None] | None = None
        records.on_end = self._lease_ended

    # --- taking

    async def take(self, lease_id: str, request: SnapshotRequest) -> SnapshotView:
        """Idempotent by the request's number. Raises what :meth:`NodeHandle.snapshot` does; LeaseExpired, NotFound,
        SandboxLost; Conflict while another one is being taken."""
        held = self._book.get(lease_id)
        if not held.bound or held.epoch != request.epoch:
            raise StaleEpoch(
                f"a snapshot was asked for under epoch {request.epoch}, lease {lease_id} is at {held.epoch}",
                hint="Its sandbox was lost; ask `recover`.",
            )
        lease = self._records.get(lease_id)
        assert lease is not None, lease_id  # the book and the records hold the same leases
        if lease.recovery != "snapshot" and lease.env:  # of a plain sandbox one is taken to be forked
            raise InvalidRequest(
                f"lease {lease_id} recovers by {lease.recovery!r}, not by snapshot",
                hint='Declare recovery = "snapshot" in env.toml, or ask for it in the lease request.',
            )
        name = f"{SNAPSHOT_PREFIX}{lease_id}-{request.epoch}-{request.number}"
        if lease.snapshot is not None and lease.snapshot.name == name:
            return lease.snapshot
        taking = self._taking.get(lease_id)
        if taking is not None and taking.name != name:
            raise Conflict(f"another snapshot of lease {lease_id} is being taken", hint="Wait for its answer.")
        if taking is None:
            work = asyncio.get_running_loop().create_task(self._take(lease, request, name))
            taking = self._taking[lease_id] = _Taking(name, work)
            work.add_done_callback(lambda ended: self._taken(lease_id, ended))
        return await asyncio.shield(taking.work)

    def _taken(self, lease_id: str, work: asyncio.Task[SnapshotView]) -> None:
        self._taking.pop(lease_id, None)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.info("lease=%s no snapshot: %s", lease_id, error)

    async def _take(self, lease: StoredLease, request: SnapshotRequest, name: str) -> SnapshotView:
        began = self._clock.now()
        try:
            size = await self._nodes.get(lease.node).snapshot(lease.id, epoch=request.epoch, name=name)
            held = self._book.get(lease.id)
            if not held.bound or held.epoch != request.epoch:
                raise Conflict(f"the sandbox of lease {lease.id} was lost while its snapshot was taken")
        except RockError as error:
            if not isinstance(error, _REFUSALS):
                self._remove_later(name, lease.node)
            raise
        kept = SnapshotView(
            name=name,
            step=request.step,
            at=datetime.now(UTC),
            bytes=size,
            node=lease.node,
            number=request.number,
            took_s=self._clock.now() - began,
        )
        await self._set(lease.id, kept)
        return kept

    # --- what the next sandbox is made of

    async def forget(self, lease_id: str, name: str) -> None:
        """It is of no use any more. Another one of the lease stays."""
        lease = self._records.get(lease_id)
        if lease is not None and lease.snapshot is not None and lease.snapshot.name == name:
            await self._set(lease_id, None)

    async def keep_only(self, lease_id: str, name: str) -> None:
        """Its holder can go on from this one; empty: from none."""
        lease = self._records.get(lease_id)
        if lease is not None and lease.snapshot is not None and lease.snapshot.name != name:
            await self._set(lease_id, None)

    async def _set(self, lease_id: str, snapshot: SnapshotView | None) -> None:
        lease = self._records.get(lease_id)
        assert lease is not None, lease_id  # nobody waited since the book was asked
        if lease.snapshot is not None:
            self._remove_later(lease.snapshot.name, lease.snapshot.node)
        await self._records.keep_snapshot(replace(lease, snapshot=snapshot))

    # --- removing

    def _lease_ended(self, lease: StoredLease) -> None:
        if lease.snapshot is not None:
            self._remove_later(lease.snapshot.name, lease.snapshot.node)
        if lease.spec.from_snapshot:
            self._remove_later(lease.spec.image, lease.node)

    async def sweep(self, node: NodeHandle) -> None:
        """Remove what no lease can use any more: left by a crash, or by an answer that got lost. Raises RockError."""
        found = await node.snapshots()
        wanted = {taking.name for taking in self._taking.values()}
        for lease in self._records:
            wanted.add(lease.spec.image)
            if lease.snapshot is not None:
                wanted.add(lease.snapshot.name)
        for name in found:
            if name not in wanted and name not in self._owed:
                log.info("node=%s snapshot=%s belongs to no lease; removing it", node.name, name)
                self._remove_later(name, node.name)

    async def sweep_all(self) -> None:
        for node in self._nodes:
            try:
                await self.sweep(node)
            except RockError as error:  # one node that does not answer must not hide the others
                log.warning("node=%s its snapshots could not be looked through: %s", node.name, error)

    def _remove_later(self, name: str, node: str) -> None:
        self._owed[name] = _Owed(node, self._clock.now() + _TRY_FOR_S)
        if self._remover is None or self._remover.done():
            self._remover = asyncio.get_running_loop().create_task(self._remove(), name="removing snapshots")

    async def _remove(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._owed:
            before = set(self._owed)
            for name, owed in list(self._owed.items()):
                if owed.node not in self._nodes or self._clock.now() >= owed.until:
                    del self._owed[name]
                    continue
                try:
                    await self._nodes.get(owed.node).remove_snapshot(name)
                except RockError as error:
                    log.debug("snapshot=%s is not removed yet: %s", name, error)
                else:
                    self._owed.pop(name, None)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if self._owed.keys() <= before else _FIRST_PAUSE_S
            if self._owed:
                await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """What is not removed by then is found after the next start."""
        tasks: list[asyncio.Task[Any]] = [taking.work for taking in self._taking.values()]
        tasks += [self._remover] if self._remover is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
