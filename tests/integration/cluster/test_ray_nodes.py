"""Two Ray nodes on one host become two nodes of the platform; one of them is killed, and comes back as another."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.domain.nodes import NodeStanding
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseRequest, LeaseView, NodeView, SandboxSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'rock-roll[ray]')"
    ),
]

# Ray wants ports below 10002 or above 19999 for its head, and ranges of their own for the workers of each node.
HEAD_PORT = 6413
START_TIMEOUT_S = 120.0


class Cluster:
    """Ray nodes of this test's own, each a tree of processes under one that we started."""

    def __init__(self, directory: Path, *, port: int = HEAD_PORT, worker_ports: int = 23000, cpus: int = 1) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []
        self._port, self._worker_ports, self._cpus = port, worker_ports, cpus
        self.address = f"127.0.0.1:{port}"

    def start(self) -> subprocess.Popen[bytes]:
        """The first is the head."""
        number = len(self._started)
        first_port = self._worker_ports + 200 * number
        where = (
            ["--head", f"--port={self._port}", "--include-dashboard=false", f"--temp-dir={self._directory}"]
            if number == 0
            else [f"--address={self.address}"]
        )
        argv = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *where),
            *("--node-ip-address=127.0.0.1", f"--num-cpus={self._cpus}", "--object-store-memory=80000000"),
            *(f"--min-worker-port={first_port}", f"--max-worker-port={first_port + 99}"),
        ]
        environ = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        with (self._directory / f"node{number}.log").open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output, env=environ)
        self._started.append(process)
        return process

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """As when the machine loses its power: all of it at once."""
        with suppress(psutil.NoSuchProcess):
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait(10)

    def close(self) -> None:
        for process in reversed(self._started):
            if process.poll() is None:
                self.kill(process)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(directory)
    yield made
    made.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    path = Path(tempfile.mkdtemp(prefix="rt-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 60.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.1)
    return found


async def opened(home: Path, cluster: Cluster) -> Platform:
    """Ray's head takes its time to answer."""
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        try:
            return await Platform.open(PlatformSettings(home, runtime="fake", ray=cluster.address, capacity=8))
        except Exception:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(1.0)


async def answers(lease: LeaseView, token: str) -> bool:
    door = lease.endpoint
    hello = {"lease": lease.id, "token": token, "epoch": lease.epoch}
    async with await GuestClient.connect_tcp(door.gateway_host, door.gateway_port, hello) as guest:
        return "env" in await guest.call("ping", timeout_s=5.0)


@pytest.mark.timeout(600)
def test_every_machine_of_a_ray_cluster_is_a_node(cluster: Cluster, home: Path) -> None:
    request = LeaseRequest(spec=SandboxSpec(image=""), recovery="replay", ttl_s=600)

    async def main() -> None:
        cluster.start()
        platform = await opened(home, cluster)
        control = platform.control

        async def standing(count: int) -> list[NodeView]:
            views = await control.nodes.views()
            return views if len(views) == count and {v.standing for v in views} == {NodeStanding.UP} else []

        try:
            (first,) = await until(lambda: standing(1))
            machine = cluster.start()
            both = await until(lambda: standing(2), START_TIMEOUT_S)  # it joins by itself
            second = next(view for view in both if view.name != first.name)
            await control.nodes.cordon(first.name)
            leases = {lease.id: lease for lease in [await control.leases.create(request) for _ in range(2)]}
            await control.nodes.uncordon(first.name)
            assert {lease.endpoint.node for lease in leases.values()} == {second.name}
            assert all([await answers(lease, lease.token) for lease in leases.values()])

            await asyncio.to_thread(cluster.kill, machine)

            async def moved() -> list[LeaseView]:
                views = control.leases.views()
                done = all(v.epoch > 1 and not v.recovering and v.endpoint.node == first.name for v in views)
                return views if done and len(views) == 2 else []

            for lease in await until(moved):
                assert await answers(lease, leases[lease.id].token)

            await until(lambda: standing(1))  # the machine has left the cluster, and with it the book
            cluster.start()
            again = await until(lambda: standing(2), START_TIMEOUT_S)
            assert second.name not in {view.name for view in again}
        finally:
            await platform.close()

    asyncio.run(main())
