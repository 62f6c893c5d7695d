"""The living leases as they are stored, and the writes that still wait for the database.

Invariants: what could not be written is kept and tried again, in an order that gives the same rows; a lease is never
written after its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from rock.domain.errors import StorageError
from rock.store.fleet import FleetStore, StoredLease
from rock.wire.handle import HeldLease

log = logging.getLogger(__name__)


class LeaseRecords:
    def __init__(self, store: FleetStore) -> None:
        self._store = store
        self._living: dict[str, StoredLease] = {}
        self._moved: dict[str, StoredLease] = {}
        self._kept: dict[str, StoredLease] = {}
        self._ended: dict[str, str] = {}
        self.on_end: Callable[[StoredLease], None] = lambda lease: None
        """Told of every lease that ends, once."""

    def __iter__(self) -> Iterator[StoredLease]:
        return iter(list(self._living.values()))

    def get(self, lease_id: str) -> StoredLease | None:
        return self._living.get(lease_id)

    def know(self, lease: StoredLease) -> None:
        """A lease that is in the database already, or will be by :meth:`add`."""
        self._living[lease.id] = lease

    async def ready(self) -> None:
        """Raises StorageError where :meth:`add` would: before a sandbox is taken for nothing."""
        await self._store.ready()

    async def add(self, lease: StoredLease) -> None:
        """Raises StorageError."""
        self.know(lease)
        await self._store.add_lease(lease)

    async def move(self, lease: StoredLease) -> None:
        """It has another sandbox and epoch. A database that refuses costs nothing but the memory of it after a crash:
        an episode that could go on must not wait for a disk."""
        self._living[lease.id] = lease
        try:
            await self._store.rebind_lease(lease)
        except StorageError as error:
            log.warning("lease=%s its new sandbox will be stored later: %s", lease.id, error)
            self._moved[lease.id] = lease

    async def keep_snapshot(self, lease: StoredLease) -> None:
        """It has another snapshot, or none. A database that refuses costs nothing but the use of it after a crash."""
        self._living[lease.id] = lease
        try:
            await self._store.save_snapshot(lease)
        except StorageError as error:
            log.warning("lease=%s its snapshot will be stored later: %s", lease.id, error)
            self._kept[lease.id] = lease

    def end(self, lease_id: str, reason: str) -> StoredLease | None:
        self._moved.pop(lease_id, None)
        self._kept.pop(lease_id, None)
        self._ended[lease_id] = reason
        lease = self._living.pop(lease_id, None)
        if lease is not None:
            self.on_end(lease)
        return lease

    async def flush(self) -> None:
        """Write down what was not yet written. Raises StorageError; then it is kept for the next time."""
        for lease in list(self._moved.values()):
            await self._store.rebind_lease(lease)
            if self._moved.get(lease.id) is lease:
                del self._moved[lease.id]
        for lease in list(self._kept.values()):
            await self._store.save_snapshot(lease)
            if self._kept.get(lease.id) is lease:
                del self._kept[lease.id]
        batch = dict(self._ended)
        if batch:
            await self._store.end_leases(batch, datetime.now(UTC))
            for lease_id in batch:
                self._ended.pop(lease_id, None)

    async def stored(self) -> list[StoredLease]:
        """What the database says is living. Raises StorageError."""
        return await self._store.living_leases()


def held_lease(lease: StoredLease) -> HeldLease:
    """What a node is told of it."""
    return HeldLease(
        lease.id, lease.sandbox_id, lease.token_sha256, lease.epoch, lease.run_id, lease.spec, lease.created_at
    )
