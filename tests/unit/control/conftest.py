"""Real control over two real nodes of the fake runtime; each part can be ended and begun again."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rock.control.control import Control, ControlConfig
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.fake import FakeRuntime
from rock.store.database import Database, database_url
from rock.wire.models import EnvView, LeaseRequest, LeaseView, PoolSize, RecoverRequest, Recovery, SandboxSpec


@dataclass
class ToyCatalog:
    """One environment, built, that recovers in this way."""

    recovery: Recovery

    def names(self) -> Sequence[str]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=name, version="1", description="d", recovery=self.recovery, built=True, snapshot_every=3)

    def tasks(self, name: str, split: str) -> Sequence[str]:
        return ("3",)

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="toy:1", env=name, entry="toy:Env", read_only=self.recovery != "snapshot")

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=1)


class Stage:
    """A control plane over nodes ``a`` and ``b``, two machines: neither has the other's images."""

    def __init__(self, home: Path, recovery: Recovery, capacity: int) -> None:
        self.home = home
        self.capacity = capacity
        self.catalog = ToyCatalog(recovery)
        self.runtimes = {name: FakeRuntime(name) for name in "ab"}
        self.nodes: dict[str, Node] = {}

    async def begin(self) -> None:
        for name, runtime in self.runtimes.items():
            config = NodeConfig(
                name=name,
                run_dir=self.home / name,
                capacity=self.capacity,
                probe_interval_s=0.1,
                probe_timeout_s=0.5,
                dead_after_s=1.0,
                reconcile_interval_s=0.2,
            )
            self.nodes[name] = Node(config, runtime)
            await self.nodes[name].open()
        self.database = await Database.open(database_url("", self.home))
        config_of_control = ControlConfig("i", expire_every_s=0.1, reconcile_every_s=0.2)
        nodes = list(self.nodes.values())
        self.control = Control(config_of_control, self.database, nodes, self.catalog, rng=random.Random(1))
        await self.control.open()
        self.leases = self.control.leases

    async def end(self) -> None:
        await self.control.close()
        for node in self.nodes.values():
            await node.close(keep_sandboxes=True)
        await self.control.write_down()
        await self.database.close()

    async def lease(self, **changes: Any) -> LeaseView:
        return await self.leases.create(LeaseRequest(env="toy", **({"wait_s": 20} | changes)))

    async def again(self, lease: LeaseView, **changes: Any) -> LeaseView:
        return await self.leases.rebind(lease.id, RecoverRequest(**({"epoch": lease.epoch, "wait_s": 20} | changes)))

    async def leased(self) -> dict[str, str]:
        """Sandboxes that a node thinks are leased, and to which lease."""
        views = [view for node in self.nodes.values() for view in await node.sandboxes()]
        return {view.id: view.lease_id for view in views if view.state in ("leased", "suspect")}

    async def until_leased(self, expected: dict[str, str]) -> None:
        async def so() -> bool:
            return await self.leased() == expected

        await self.until(so)

    async def until(self, condition: Callable[[], Any], within_s: float = 15.0) -> Any:
        """What ``condition`` gives, awaited if need be, as soon as that is true."""
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            found = condition()
            found = await found if asyncio.iscoroutine(found) else found
            if found:
                return found
            assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
            await asyncio.sleep(0.01)


@pytest.fixture
def stage() -> Callable[..., AbstractAsyncContextManager[Stage]]:
    """``async with stage() as it``: by itself its environment recovers by replay."""

    @asynccontextmanager
    async def make(recovery: Recovery = "replay", capacity: int = 64) -> AsyncIterator[Stage]:
        home = Path(tempfile.mkdtemp(prefix="rl-"))
        made = Stage(home, recovery, capacity)
        await made.begin()
        try:
            yield made
        finally:
            await made.end()
            for runtime in made.runtimes.values():
                await runtime.destroy()
            shutil.rmtree(home, ignore_errors=True)

    return make
