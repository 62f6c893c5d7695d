"""Snapshots in the lease book's keeping: over restarts, over nodes that do not have them, and swept when nobody's."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rock.control.control import Control, ControlConfig
from rock.domain.errors import LeaseExpired, StorageError
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.fake import FakeRuntime
from rock.store.database import Database, database_url
from rock.wire.models import (
    SNAPSHOT_PREFIX,
    EnvView,
    LeaseRequest,
    LeaseView,
    PoolSize,
    RecoverRequest,
    SandboxSpec,
    SnapshotRequest,
    SnapshotView,
)


class Catalog:
    def names(self) -> tuple[str, ...]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=name, version="1", description="", recovery="snapshot", built=True, snapshot_every=3)

    def tasks(self, name: str, split: str) -> tuple[str, ...]:
        return ("3",)

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="toy:1", env=name, entry="toy:Env", read_only=False)

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=1)


class Stage:
    """Two machines, neither of which has the other's images."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runtimes = {name: FakeRuntime(name) for name in "ab"}

    async def begin(self) -> None:
        self.nodes = {}
        for name, runtime in self.runtimes.items():
            config = NodeConfig(name=name, run_dir=self.home / name, probe_interval_s=0.1, reconcile_interval_s=0.2)
            self.nodes[name] = Node(config, runtime)
            await self.nodes[name].open()
        self.database = await Database.open(database_url("", self.home))
        config_of_control = ControlConfig("i", expire_every_s=0.1, reconcile_every_s=0.2)
        self.control = Control(
            config_of_control, self.database, list(self.nodes.values()), Catalog(), rng=random.Random(1)
        )
        await self.control.open()
        self.leases = self.control.leases

    async def end(self) -> None:
        await self.control.close()
        for node in self.nodes.values():
            await node.close(keep_sandboxes=True)
        await self.control.write_down()
        await self.database.close()

    @property
    def kept(self) -> set[str]:
        return {name for runtime in self.runtimes.values() for name in runtime.kept}

    async def lease(self) -> LeaseView:
        return await self.leases.create(LeaseRequest(env="toy", wait_s=20))

    async def take(self, lease: LeaseView, number: int = 1) -> SnapshotView:
        return await self.leases.snapshots.take(
            lease.id, SnapshotRequest(epoch=lease.epoch, number=number, step=3 * number)
        )

    async def again(self, lease: LeaseView, snapshot: str | None) -> LeaseView:
        return await self.leases.rebind(
            lease.id, RecoverRequest(epoch=lease.epoch, wait_s=20, why="test", snapshot=snapshot)
        )


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    home = Path(tempfile.mkdtemp(prefix="rl-"))
    made = Stage(home)
    await made.begin()
    try:
        yield made
    finally:
        await made.end()
        for runtime in made.runtimes.values():
            await runtime.destroy()
        shutil.rmtree(home, ignore_errors=True)


async def until(condition: Callable[[], Any], within_s: float = 15.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return found


def test_the_next_sandbox_is_made_of_the_snapshot_on_the_node_that_has_it() -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            await it.take(lease)
            latest = await it.take(lease, 2)
            await until(lambda: it.kept == {latest.name})
            moved = await it.again(lease, latest.name)
            assert (moved.snapshot, moved.image, moved.endpoint.node) == (latest.name, latest.name, latest.node)
            assert moved.latest_snapshot == latest
            # Its successor is made of its own files; what it stands on goes when it does.
            newest = await it.take(moved)
            assert newest.name != latest.name
            assert it.kept == {latest.name, newest.name}
            await it.leases.release(lease.id)
            await until(lambda: not it.kept)

    asyncio.run(main())


def test_where_its_node_is_gone_the_next_one_is_as_new() -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            latest = await it.take(lease)
            await it.control.nodes.cordon(latest.node)
            moved = await it.again(lease, latest.name)
            assert (moved.snapshot, moved.image) == ("", "toy:1")
            assert moved.endpoint.node != latest.node
            await until(lambda: not it.kept)

    asyncio.run(main())


def test_a_snapshot_that_does_not_start_costs_two_tries() -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            latest = await it.take(lease)
            for runtime in it.runtimes.values():
                runtime.faults.applies_to = lambda spec: spec.from_snapshot
                runtime.faults.dies_at_start = True
            moved = await it.again(lease, latest.name)
            assert moved.snapshot == ""

    asyncio.run(main())


def test_a_holder_that_knows_of_no_snapshot_gets_one_as_new_even_when_the_other_is_there() -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            await it.take(lease)
            await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
            await until(lambda: it.leases.views()[0].epoch > 1 and it.leases.views()[0].snapshot)
            moved = await it.again(lease, "")
            assert moved.snapshot == ""
            await until(lambda: not it.kept)

    asyncio.run(main())


def test_a_restart_keeps_what_leases_have_and_sweeps_what_nobody_has() -> None:
    async def main() -> None:
        async with stage() as it:
            lease, other = await it.lease(), await it.lease()
            latest = await it.take(lease)
            await it.take(other)
            moved = await it.again(lease, latest.name)
            await it.end()
            runtime = it.runtimes[latest.node]
            runtime.kept[f"{SNAPSHOT_PREFIX}ls-nobody-1-1"] = {}
            await it.runtimes[other.endpoint.node].remove(other.sandbox_id)
            await it.begin()
            await until(lambda: f"{SNAPSHOT_PREFIX}ls-nobody-1-1" not in it.kept)
            views = {view.id: view for view in it.leases.views()}
            assert views[lease.id].snapshot == latest.name == moved.snapshot
            assert views[lease.id].latest_snapshot == latest
            again = await it.again(other, f"{SNAPSHOT_PREFIX}{other.id}-1-1")
            assert again.snapshot  # lost during the restart, and made of what was kept before it
            for view in views.values():
                await it.leases.release(view.id)
            await until(lambda: not it.kept)

    asyncio.run(main())


def test_a_database_that_refuses_costs_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()

            async def full(*_: object) -> None:
                raise StorageError("the disk is full")

            save = it.leases._records._store.save_snapshot
            monkeypatch.setattr(it.leases._records._store, "save_snapshot", full)
            latest = await it.take(lease)
            monkeypatch.setattr(it.leases._records._store, "save_snapshot", save)
            await it.leases.store_ended()
            (stored,) = await it.leases._records.stored()
            assert stored.snapshot == latest
            assert stored.image == "toy:1"
            await it.leases.release(lease.id)
            with pytest.raises(LeaseExpired):
                await it.take(lease, 2)

    asyncio.run(main())
