"""Keeping the files of a leased sandbox, for the one that takes its place when it is lost.

Invariants: a snapshot is taken for the holder of the sandbox's present epoch only; one that was not finished in time,
or that nobody waits for any more, is removed as soon as it comes into being; none is begun on a disk that is almost
full.
"""

from __future__ import annotations

import asyncio
import logging

from rock.domain.errors import Conflict, DeadlineExceeded, NotFound, RockError, StaleEpoch, StorageError
from rock.node.config import NodeConfig
from rock.node.fleet import Fleet
from rock.node.record import Record
from rock.runtimes.base import Runtime
from rock.runtimes.shared import nothing_to_keep

log = logging.getLogger(__name__)

# A commit keeps the disk busy: many at once are no sooner done.
_AT_ONCE = 4


class SnapshotTaker:
    def __init__(self, config: NodeConfig, runtime: Runtime, fleet: Fleet) -> None:
        self._config = config
        self._runtime = runtime
        self._fleet = fleet
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._under_way: set[asyncio.Task[int]] = set()
        self._leftovers: set[asyncio.Task[None]] = set()

    async def take(self, lease_id: str, epoch: int, name: str) -> int:
        """As :meth:`rock.wire.handle.NodeHandle.snapshot`."""
        record = self._held(lease_id, epoch)
        if record.spec.read_only:
            raise nothing_to_keep(record.spec.env)
        used, full_at = await self._runtime.disk_used(), self._config.disk_full_at
        if used >= full_at:
            raise StorageError(
                f"no new snapshots: the disk for images is {used:.0%} full, the limit is {full_at:.0%}",
                hint="Free some space, with `rock image prune` for example. Without one, the last snapshot counts.",
            )
        work = asyncio.get_running_loop().create_task(self._make(record, lease_id, name))
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)
        try:
            done, _ = await asyncio.wait({work}, timeout=self._config.snapshot_timeout_s)
        except asyncio.CancelledError:
            self._unwanted(work, name)
            raise
        if not done:
            self._unwanted(work, name)
            raise DeadlineExceeded(
                f"the snapshot of sandbox {record.id} was not made within {self._config.snapshot_timeout_s:g} s",
                hint="The disk is slow, or the sandbox has written much. It goes on without this one.",
            )
        return work.result()

    async def _make(self, record: Record, lease_id: str, name: str) -> int:
        async with self._slots:
            return await self._runtime.snapshot(record.handle, name, lease_id)

    def _held(self, lease_id: str, epoch: int) -> Record:
        record = self._fleet.of_lease(lease_id)
        if record is None or record.grant is None:
            raise NotFound(f"lease {lease_id} holds no sandbox on node {self._config.name}")
        if record.grant.epoch != epoch:
            raise StaleEpoch(
                f"a snapshot was asked for under epoch {epoch}, lease {lease_id} is at {record.grant.epoch}",
                hint="Another holder has taken over, or the sandbox was lost; stop using this one.",
            )
        return record

    def _unwanted(self, work: asyncio.Task[int], name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._remove_when_made(work, name))
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    async def _remove_when_made(self, work: asyncio.Task[int], name: str) -> None:
        """What cannot be removed here is found by control's next sweep."""
        try:
            await asyncio.wait({work})
            await self._runtime.remove_snapshot(name)
        except RockError as error:
            log.warning("snapshot=%s that came too late was not removed: %s", name, error)

    async def remove_all(self) -> None:
        """When the node ends and keeps nothing; its sandboxes are gone already."""
        if pending := {*self._under_way, *self._leftovers}:
            await asyncio.wait(pending, timeout=self._config.snapshot_timeout_s)
        for name in await self._runtime.snapshots():
            try:
                await self._runtime.remove_snapshot(name)
            except Conflict as error:
                log.warning("snapshot=%s was not removed: %s", name, error)

    async def close(self) -> None:
        for task in {*self._under_way, *self._leftovers}:
            task.cancel()
        await asyncio.gather(*self._under_way, *self._leftovers, return_exceptions=True)
