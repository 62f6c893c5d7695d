"""A node on the fake runtime behind its server, and a proxy in front of it that can be cut."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rock.cluster.remote import RemoteNode, Timing
from rock.domain.backoff import BackoffPolicy
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.node.server import NodeServer
from rock.runtimes.fake import FakeRuntime
from rock.wire.handle import token_sha256
from rock.wire.models import EventView, SandboxSpec, SandboxView
from rock.wire.node_wire import Address

TOKEN = "the token of these tests"
PLAIN = SandboxSpec(image="plain")
QUICK = Timing(view_s=0.5, look_s=1.0, reconnect_s=0.5, backoff=BackoffPolicy(0.01, 0.05))


class Proxy:
    """TCP on the loopback, to an address. ``cut``: what is sent arrives nowhere and nobody is told, as when a cable is
    pulled; ``refuse``: connections end and new ones are turned away."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self.address = Address()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address(host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._refusing = False
        self._open.set()

    def refuse(self) -> None:
        self._refusing = True
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.transport.abort()
            return
        with suppress(OSError, asyncio.CancelledError):
            there_reader, there_writer = await asyncio.open_connection(self._target.host, self._target.port)
            ends = {writer, there_writer}
            self._writers |= ends
            try:
                await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
            finally:
                self._writers -= ends
                for end in ends:
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._open.wait()
            writer.write(data)
        raise ConnectionResetError


@dataclass
class Far:
    """A node behind a wire."""

    node: Node
    server: NodeServer
    proxy: Proxy
    runtime: FakeRuntime
    remote: RemoteNode
    changes: list[SandboxView] = field(default_factory=list)
    events: list[EventView] = field(default_factory=list)
    token: str = TOKEN

    @staticmethod
    async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], within_s: float = 8.0) -> Any:
        """Wait until ``condition()`` is true and return it."""
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
            await asyncio.sleep(0.005)

    async def claim(self, lease_id: str = "ls-1", *, epoch: int = 1, spec: SandboxSpec = PLAIN, wait_s: float = 5.0):  # type: ignore[no-untyped-def]
        return await self.remote.claim(
            spec, lease_id=lease_id, token_sha256=token_sha256("secret"), epoch=epoch, run_id="run-1", wait_s=wait_s
        )


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """pytest's own directories are too long for a unix socket's path."""
    path = Path(tempfile.mkdtemp(prefix="rk"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def far(short_dir: Path) -> Callable[..., Any]:
    """``async with far("n1") as f``: a node that runs, its server, and a handle connected through a proxy."""

    @asynccontextmanager
    async def make(name: str = "n1", **settings: Any) -> AsyncIterator[Far]:
        config = NodeConfig(
            name=name,
            run_dir=short_dir / name,
            probe_interval_s=0.1,
            reconcile_interval_s=0.2,
            start_timeout_s=3.0,
            **settings,
        )
        runtime = FakeRuntime()
        node = Node(config, runtime)
        await node.open()
        server = NodeServer(node, token=TOKEN, run_dir=config.run_dir)
        proxy = Proxy(await server.listen(Address.parse("127.0.0.1:0")))
        await proxy.open()

        async def locate() -> Address:
            return proxy.address

        remote = RemoteNode(name, locate, TOKEN, timing=QUICK)
        one = Far(node, server, proxy, runtime, remote)
        remote.on_change(one.changes.append)
        remote.on_event(one.events.append)
        await remote.open(5.0)
        try:
            yield one
        finally:
            await remote.detach()
            await proxy.close()
            await server.close()
            await node.close()
            await runtime.destroy()

    return make
