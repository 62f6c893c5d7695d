"""Snapshots in the lease book's keeping: over restarts, over nodes that do not have them, and swept when nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rock.domain.errors import LeaseExpired, StorageError
from rock.wire.models import SNAPSHOT_PREFIX, LeaseView, SnapshotRequest, SnapshotView

Staging = Callable[..., AbstractAsyncContextManager[Any]]


def kept(it: Any) -> set[str]:
    return {name for runtime in it.runtimes.values() for name in runtime.kept}


async def take(it: Any, lease: LeaseView, number: int = 1) -> SnapshotView:
    wanted = SnapshotRequest(epoch=lease.epoch, number=number, step=3 * number)
    view: SnapshotView = await it.leases.snapshots.take(lease.id, wanted)
    return view


def test_the_next_sandbox_is_made_of_the_snapshot_on_the_node_that_has_it(stage: Staging) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease = await it.lease()
            await take(it, lease)
            latest = await take(it, lease, 2)
            await it.until(lambda: kept(it) == {latest.name})
            moved = await it.again(lease, why="test", snapshot=latest.name)
            assert (moved.snapshot, moved.image, moved.endpoint.node) == (latest.name, latest.name, latest.node)
            assert moved.latest_snapshot == latest
            # Its successor is made of its own files; what it stands on goes when it does.
            newest = await take(it, moved)
            assert newest.name != latest.name
            assert kept(it) == {latest.name, newest.name}
            await it.leases.release(lease.id)
            await it.until(lambda: not kept(it))

    asyncio.run(main())


def test_where_its_node_is_gone_the_next_one_is_as_new(stage: Staging) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease = await it.lease()
            latest = await take(it, lease)
            await it.control.nodes.cordon(latest.node)
            moved = await it.again(lease, why="test", snapshot=latest.name)
            assert (moved.snapshot, moved.image) == ("", "toy:1")
            assert moved.endpoint.node != latest.node
            await it.until(lambda: not kept(it))

    asyncio.run(main())


def test_a_snapshot_that_does_not_start_costs_two_tries(stage: Staging) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease = await it.lease()
            latest = await take(it, lease)
            for runtime in it.runtimes.values():
                runtime.faults.applies_to = lambda spec: spec.from_snapshot
                runtime.faults.dies_at_start = True
            moved = await it.again(lease, why="test", snapshot=latest.name)
            assert moved.snapshot == ""

    asyncio.run(main())


def test_a_holder_that_knows_of_no_snapshot_gets_one_as_new_even_when_the_other_is_there(stage: Staging) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease = await it.lease()
            await take(it, lease)
            await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
            await it.until(lambda: it.leases.views()[0].epoch > 1 and it.leases.views()[0].snapshot)
            moved = await it.again(lease, why="test", snapshot="")
            assert moved.snapshot == ""
            await it.until(lambda: not kept(it))

    asyncio.run(main())


def test_a_restart_keeps_what_leases_have_and_sweeps_what_nobody_has(stage: Staging) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease, other = await it.lease(), await it.lease()
            latest = await take(it, lease)
            await take(it, other)
            moved = await it.again(lease, why="test", snapshot=latest.name)
            await it.end()
            runtime = it.runtimes[latest.node]
            runtime.kept[f"{SNAPSHOT_PREFIX}ls-nobody-1-1"] = {}
            await it.runtimes[other.endpoint.node].remove(other.sandbox_id)
            await it.begin()
            await it.until(lambda: f"{SNAPSHOT_PREFIX}ls-nobody-1-1" not in kept(it))
            views = {view.id: view for view in it.leases.views()}
            assert views[lease.id].snapshot == latest.name == moved.snapshot
            assert views[lease.id].latest_snapshot == latest
            again = await it.again(other, why="test", snapshot=f"{SNAPSHOT_PREFIX}{other.id}-1-1")
            assert again.snapshot  # lost during the restart, and made of what was kept before it
            for view in views.values():
                await it.leases.release(view.id)
            await it.until(lambda: not kept(it))

    asyncio.run(main())


def test_a_database_that_refuses_costs_no_snapshot(stage: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with stage("snapshot") as it:
            lease = await it.lease()

            async def full(*_: object) -> None:
                raise StorageError("the disk is full")

            save = it.leases._records._store.save_snapshot
            monkeypatch.setattr(it.leases._records._store, "save_snapshot", full)
            latest = await take(it, lease)
            monkeypatch.setattr(it.leases._records._store, "save_snapshot", save)
            await it.leases.store_ended()
            (stored,) = await it.leases._records.stored()
            assert stored.snapshot == latest
            assert stored.image == "toy:1"
            await it.leases.release(lease.id)
            with pytest.raises(LeaseExpired):
                await take(it, lease, 2)

    asyncio.run(main())
