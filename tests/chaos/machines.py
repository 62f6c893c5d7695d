"""The processes of a simulated platform and what they stand on: nodes, the control plane, its disk. Each can be killed
at any moment and started again; what a dead one still tries reaches nobody."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from door import Door
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from virtual_loop import VirtualLoop, in_process
from witness import Witness

from rock.cluster.remote import RemoteNode, Timing
from rock.control.control import Control, ControlConfig
from rock.domain.backoff import BackoffPolicy
from rock.domain.errors import NotFound, PlatformUnavailable, RuntimeUnavailable, StorageError
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.node.server import NodeServer
from rock.runtimes.base import RuntimeEvent
from rock.runtimes.fake import FakeRuntime
from rock.store import database as store
from rock.store.database import Database
from rock.wire.models import EnvView, PoolSize, SandboxSpec
from rock.wire.node_wire import Address

_TOKEN = "shared"
_PORT = 7000


@dataclass(frozen=True)
class Stage:
    """What all of them share."""

    loop: VirtualLoop
    folder: Path
    rng: random.Random
    witness: Witness
    disk: Disk
    door: Door
    pool: int


class OneEnv:
    """The catalogue: one environment, built, with a pool of the schedule's size."""

    def __init__(self, pool: int) -> None:
        self._pool = pool

    def names(self) -> Sequence[str]:
        return ("play",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=self._known(name), version="1", description="d", recovery="replay", built=True)

    def tasks(self, name: str, split: str) -> Sequence[str]:
        return ()

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="play", env=self._known(name), entry="play:Play")

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=self._pool)

    def _known(self, name: str) -> str:
        if name != "play":
            raise NotFound(f"no environment {name!r}")
        return name


class Disk:
    """The database's file, and what is wrong with it just now. It outlives every life of control."""

    def __init__(self, path: Path) -> None:
        shutil.copyfile(template(), path)
        self.path = path
        self.broken = False
        self.reads_broken = False


def template() -> Path:
    """An empty database, migrated once per process: that takes longer than a whole run."""
    if not _made:
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "template.db"

        async def make() -> None:
            await (await Database.open(store.database_url(str(path), folder))).close()

        asyncio.run(make())
        _made.append(path)
    return _made[0]


_made: list[Path] = []


class SimDatabase(Database):
    """The real one over SQLite; ``dead`` when the process it belongs to is."""

    def __init__(self, disk: Disk) -> None:
        url = store.database_url(str(disk.path), disk.path.parent)
        engine = create_async_engine(url, **store._engine_options(url))
        event.listen(engine.sync_engine, "connect", _careless)
        super().__init__(engine, str(disk.path))
        self._disk = disk
        self.dead = False

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self._fail_if(self._disk.reads_broken)
        async with super().read() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self._fail_if(self._disk.broken)
        async with super().write() as connection:
            yield connection
            self._fail_if(self._disk.broken)  # it breaks in the middle of a transaction, too

    def _fail_if(self, broken: bool) -> None:
        if self.dead or broken:
            raise StorageError("the disk is full", hint="Free some space.")


def _careless(connection: Any, _record: object) -> None:
    """Nobody pulls the plug of the machine that simulates."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


class Leash:
    """A node process's hold on the runtime: ends with the process, while the sandboxes live on."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runtime, name)
        if not self.cut or not asyncio.iscoroutinefunction(found):
            return found

        async def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeUnavailable("this process is dead")

        return refuse

    async def watch(self) -> AsyncIterator[RuntimeEvent]:
        async for told in self._runtime.watch():
            if not self.cut:
                yield told


class Host:
    """A machine with a node on it."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self.name = name
        self.runtime = FakeRuntime(name, env_factory=stage.witness.scribe)
        self._lives = itertools.count(1)
        self._process = ""
        self._leash = Leash(self.runtime)
        self._starting = asyncio.Lock()
        self.node: Node | None = None

    async def start(self) -> None:
        """Once, also when two repairs come to it at the same time."""
        async with self._starting:
            if self.node is None:
                await self._start()

    async def _start(self) -> None:
        self._process = f"{self.name}/{next(self._lives)}"
        self._leash = Leash(self.runtime)
        with in_process(self._process):
            leash: Any = self._leash
            node = Node(_node_config(self.name, self._stage.folder / self.name), leash, rng=self._stage.rng)
            await node.open()
            server = NodeServer(node, token=_TOKEN, run_dir=Path("/elsewhere", self.name))
            await server.listen(Address(host=self.name, port=_PORT))
        self.node = node

    def kill(self) -> None:
        if self.node is not None:
            self.node = None
            self._leash.cut = True
            self._stage.loop.kill(self._process)

    def living(self) -> list[str]:
        return sorted(s.id for s in self.runtime._sandboxes.values() if s.running)


def _node_config(name: str, run_dir: Path) -> NodeConfig:
    return NodeConfig(
        name=name,
        run_dir=run_dir,
        capacity=8,
        start_timeout_s=5.0,
        probe_interval_s=0.5,
        probe_timeout_s=0.5,
        dead_after_s=1.5,
        reconcile_interval_s=1.0,
        backoff=BackoffPolicy(0.1, 2.0),
        gateway_host=name,
    )


class Brain:
    """The control plane, life after life."""

    def __init__(self, stage: Stage, hosts: Sequence[Host]) -> None:
        self._stage = stage
        self._hosts = hosts
        self._lives = itertools.count(1)
        self._process = ""
        self._starting = asyncio.Lock()
        self._killed = ""
        self.control: Control | None = None
        self._database: SimDatabase | None = None

    async def start(self) -> bool:
        """False if it was killed before it was up."""
        async with self._starting:
            if self.control is not None:
                return True
            try:
                await self._start()
            except asyncio.CancelledError:
                if self._killed != self._process:
                    raise  # not the life that began here, but whoever waits for it
                self._stage.loop.kill(self._process)  # and what it began meanwhile
                return False
            return True

    async def _start(self) -> None:
        stage = self._stage
        self._process = f"control/{next(self._lives)}"
        with in_process(self._process):
            self._database = SimDatabase(stage.disk)
            handles = [self._handle(host.name) for host in self._hosts]
            reached = await asyncio.gather(*(_reached(handle, 2.0) for handle in handles))
            nodes = [handle for handle, found in zip(handles, reached, strict=True) if found]
            late = [self._handle(host.name) for host, found in zip(self._hosts, reached, strict=True) if not found]
            config = ControlConfig("chaos", {"play": stage.pool}, expire_every_s=0.5, reconcile_every_s=1.0)
            control = Control(config, self._database, nodes, OneEnv(stage.pool), rng=stage.rng)
            await control.open()
            if self._killed == self._process:
                raise asyncio.CancelledError  # nobody waited for anything of its own when it was killed
            for handle in late:
                stage.loop.create_task(_join(control, handle))
        self.control = control
        stage.door.open(control, self._spawn)

    def _handle(self, name: str) -> RemoteNode:
        async def locate() -> Address:
            return Address(host=name, port=_PORT)

        timing = Timing(view_s=0.5, look_s=1.0, adopt_s=5.0, claim_grace_s=1.0, backoff=BackoffPolicy(0.05, 0.5))
        return RemoteNode(name, locate, _TOKEN, timing=timing, rng=self._stage.rng)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        with in_process(self._process):
            return self._stage.loop.create_task(work)

    def kill(self) -> None:
        """Also one that did not come up."""
        self.control = None
        self._killed = self._process
        self._stage.door.shut()
        if self._database is not None:
            self._database.dead = True
        self._stage.loop.kill(self._process)

    async def stop(self) -> None:
        """In order."""
        control, database = self.control, self._database
        assert control is not None
        assert database is not None
        self._stage.door.shut()
        control.refuse_claims()
        await control.close()
        for host in self._hosts:
            await control.nodes.get(host.name).close()
        await control.write_down()
        await database.close()


async def _reached(handle: RemoteNode, within_s: float) -> bool:
    try:
        await handle.open(within_s)
    except PlatformUnavailable:
        return False
    return True


async def _join(control: Control, handle: RemoteNode) -> None:
    """A node that could not be reached when control started comes later."""
    while not await _reached(handle, 60.0):
        pass
    await control.nodes.join(handle)
