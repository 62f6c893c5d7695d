"""The two processes of `benchmarks.control_plane`: all nodes in one, the control plane alone in the other.

``python -m benchmarks._fleet nodes|control FOLDER`` with the settings as JSON on standard input. Each prints a line of
JSON when it is ready, and another when it ends, which it does when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._measuring import p50_ms, p99_ms
from rock.api.app import create_app
from rock.api.server import serve
from rock.cluster.remote import RemoteNode
from rock.control.control import Control, ControlConfig
from rock.domain.errors import NotFound
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.node.server import NodeServer
from rock.runtimes.fake import FakeRuntime
from rock.store.database import Database, database_url
from rock.wire.models import EnvView, PoolSize, SandboxSpec
from rock.wire.node_wire import Address

_TOKEN = "of this benchmark"
_LAG_EVERY_S = 0.02


class ToyCatalog:
    """The fake runtime's toy environment, with a warm pool on every node."""

    def __init__(self, pool: int) -> None:
        self._pool = pool

    def names(self) -> Sequence[str]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=self._known(name), version="1", description="counts", recovery="replay", built=True)

    def tasks(self, name: str, split: str) -> Sequence[str]:
        return ("10",)

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="toy:1", env=self._known(name), entry="toy:Env")

    def task_spec(self, name: str, task: str) -> SandboxSpec | None:
        return None

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=self._pool)

    def _known(self, name: str) -> str:
        if name != "toy":
            raise NotFound(f"no environment {name!r}", hint="Known: toy.")
        return name


def names(count: int) -> list[str]:
    return [f"n{number:02d}" for number in range(count)]


async def nodes(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """All nodes; a share of their leased sandboxes is killed every minute."""
    hosted = []
    for name in names(settings["nodes"]):
        runtime = FakeRuntime(name)
        run_dir = folder / name
        node = Node(NodeConfig(name=name, run_dir=run_dir, capacity=settings["capacity"], max_starting=8), runtime)
        await node.open()
        server = NodeServer(node, token=_TOKEN, run_dir=run_dir)
        await server.listen(Address(path=str(folder / f"{name}.sock")))
        hosted.append((node, runtime, server))
    say({"ready": True})
    killing = [asyncio.create_task(kill_some([(n, r) for n, r, _ in hosted], settings["failures_per_min"]))]
    await until_stdin_ends()
    killing[0].cancel()
    killed = await killing[0]
    for node, runtime, server in hosted:
        await server.close()
        await node.close()
        await runtime.destroy()
    return {"killed": killed}


async def kill_some(fleet: list[tuple[Node, FakeRuntime]], per_min: float) -> list[tuple[str, float]]:
    """(sandbox, when) of each death."""
    rng, killed = random.Random(1), []
    try:
        while True:
            await asyncio.sleep(1.0)
            leased = [(r, v.id) for n, r in fleet for v in await n.sandboxes() if v.state == "leased"]
            for runtime, sandbox_id in leased:
                if rng.random() < per_min / 60:
                    killed.append((sandbox_id, time.time()))
                    await runtime.kill(sandbox_id)
    except asyncio.CancelledError:
        return killed


async def control(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The control plane over the nodes' sockets, with the API; how late it was, at its end."""
    database = await Database.open(database_url("", folder))
    handles = [_handle(folder, name) for name in names(settings["nodes"])]
    await asyncio.gather(*(handle.open() for handle in handles))
    plane = Control(ControlConfig("bench", {"toy": settings["pool"]}), database, handles, ToyCatalog(settings["pool"]))
    await plane.open()
    watching = [asyncio.create_task(loop_lag()), asyncio.create_task(passes(plane))]
    serving = asyncio.create_task(serve(create_app(plane, key=""), "127.0.0.1", 0, lambda url: say({"url": url})))
    await until_stdin_ends()
    for task in watching:
        task.cancel()
    lags, took = await asyncio.gather(*watching)
    plane.request_shutdown()
    await serving
    await plane.close()
    for handle in handles:
        await handle.detach()
    await plane.write_down()
    await database.close()
    return {
        "loop_lag_p50_ms": p50_ms(lags),
        "loop_lag_p99_ms": p99_ms(lags),
        "reconcile_p50_ms": p50_ms(took),
        "reconcile_p99_ms": p99_ms(took),
    }


def _handle(folder: Path, name: str) -> RemoteNode:
    async def locate() -> Address:
        return Address(path=str(folder / f"{name}.sock"))

    return RemoteNode(name, locate, _TOKEN)


async def loop_lag() -> list[float]:
    """How much later than asked for a task is woken: what every request waits for, too."""
    lags = []
    try:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_LAG_EVERY_S)
            lags.append(time.perf_counter() - began - _LAG_EVERY_S)
    except asyncio.CancelledError:
        return lags


async def passes(plane: Control) -> list[float]:
    """Seconds of a full comparison of all leases with all nodes."""
    took = []
    try:
        while True:
            await asyncio.sleep(2.0)
            began = time.perf_counter()
            await plane.leases.reconcile()
            took.append(time.perf_counter() - began)
    except asyncio.CancelledError:
        return took


async def until_stdin_ends() -> None:
    await asyncio.to_thread(sys.stdin.read)


def say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def main(role: str, folder: str) -> None:
    settings = json.loads(sys.stdin.readline())
    work = nodes if role == "nodes" else control
    say(asyncio.run(work(Path(folder), settings)))


if __name__ == "__main__":
    main(*sys.argv[1:])
