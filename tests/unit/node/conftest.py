"""A node on the fake runtime, quick in everything, in a directory short enough for sockets."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rock.domain.backoff import BackoffPolicy
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.fake import FakeRuntime
from rock.wire.handle import HeldLease, token_sha256
from rock.wire.models import EventView, SandboxSpec, SandboxView

PLAIN = SandboxSpec(image="plain")
TOY = SandboxSpec(image="toy", env="toy", entry="toy:Env")


@dataclass
class World:
    """A node, its runtime, and everything it said."""

    config: NodeConfig
    runtime: FakeRuntime
    node: Node
    changes: list[SandboxView] = field(default_factory=list)
    events: list[EventView] = field(default_factory=list)
    claimed: int = 0

    async def claim(self, spec: SandboxSpec = PLAIN, *, wait_s: float = 5.0, token: str = "secret") -> SandboxView:
        self.claimed += 1
        return await self.node.claim(
            spec,
            lease_id=f"ls-{self.claimed}",
            token_sha256=token_sha256(token),
            epoch=1,
            run_id="run-1",
            wait_s=wait_s,
        )

    async def until(self, condition: Callable[[], Any] | Callable[[], Awaitable[Any]], within_s: float = 8.0) -> Any:
        """Wait until ``condition()`` is true and return it."""
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {within_s} s; events: {self.events}")
            await asyncio.sleep(0.005)

    def states(self, sandbox_id: str) -> list[str]:
        return [view.state.value for view in self.changes if view.id == sandbox_id]

    def last(self, sandbox_id: str) -> SandboxView:
        return next(view for view in reversed(self.changes) if view.id == sandbox_id)

    async def ready(self, spec: SandboxSpec, count: int) -> None:
        async def enough() -> bool:
            pools = {pool.digest: pool for pool in (await self.node.view()).pools}
            return spec.digest in pools and pools[spec.digest].ready == count

        await self.until(enough)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """pytest's own directories are too long for a unix socket's path."""
    path = Path(tempfile.mkdtemp(prefix="rk"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def world(short_dir: Path) -> Callable[..., Any]:
    """``async with world(capacity=3) as w``: a node that runs. ``runtime`` continues with another node's runtime."""

    @asynccontextmanager
    async def make(
        runtime: FakeRuntime | None = None, held: Sequence[HeldLease] = (), **settings: Any
    ) -> AsyncIterator[World]:
        config = NodeConfig(
            name="n1",
            run_dir=short_dir / "run",
            probe_interval_s=0.03,
            probe_timeout_s=0.1,
            frozen_after_s=0.2,
            dead_after_s=0.5,
            reconcile_interval_s=0.1,
            start_timeout_s=3.0,
            backoff=BackoffPolicy(0.02, 0.2),
        )
        own = runtime or FakeRuntime()
        node = Node(replace(config, **settings), own)
        w = World(config, own, node)
        node.on_change(w.changes.append)
        node.on_event(w.events.append)
        await node.open()
        await node.adopt(held)
        try:
            yield w
        finally:
            own.faults.__init__()  # type: ignore[misc]
            await node.close()
            if runtime is None:
                await own.destroy()

    return make
