"""Nodes as processes: one that is killed costs its leases a moment, a control that is killed costs them nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.cluster.local import Platform
from rock.cluster.process import ProcessNodes, running
from rock.cluster.settings import PlatformSettings
from rock.domain.nodes import NodeStanding
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseRequest, LeaseView, SandboxSpec

RECOVERS = LeaseRequest(spec=SandboxSpec(image=""), recovery="replay", ttl_s=600)
ENDS = LeaseRequest(spec=SandboxSpec(image=""), ttl_s=600)


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rt-"))
    yield path
    for notice in (path / "nodes").glob("*.json"):  # of a test that failed half-way
        if (process := running(notice)) is not None:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    shutil.rmtree(path, ignore_errors=True)


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 60.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)
    return found


async def open_platform(home: Path, runtime: str, **settings: Any) -> Platform:
    return await Platform.open(PlatformSettings(home, runtime=runtime, nodes=2, capacity=16, **settings))


def processes(platform: Platform) -> dict[str, int]:
    assert isinstance(platform.source, ProcessNodes)
    return {process.settings.name: process.pid for process in platform.source.processes}


async def lease_on(platform: Platform, node: str, request: LeaseRequest) -> LeaseView:
    other = ({"node-1", "node-2"} - {node}).pop()
    await platform.control.nodes.cordon(other)
    lease = await platform.control.leases.create(request)
    await platform.control.nodes.uncordon(other)
    assert lease.endpoint.node == node
    return lease


async def answers(lease: LeaseView) -> bool:
    door = lease.endpoint
    hello = {"lease": lease.id, "token": lease.token, "epoch": lease.epoch}
    async with await GuestClient.connect_tcp(door.gateway_host, door.gateway_port, hello) as guest:
        return "env" in await guest.call("ping", timeout_s=5.0)


def test_a_node_that_is_killed_costs_the_others_nothing_and_its_leases_a_moment(home: Path) -> None:
    async def main() -> None:
        platform = await open_platform(home, "fake")  # whose sandboxes die with their node
        try:
            moved, ended = [await lease_on(platform, "node-1", request) for request in (RECOVERS, ENDS)]
            untouched = await lease_on(platform, "node-2", ENDS)
            assert await answers(moved)
            before = processes(platform)
            os.kill(before["node-1"], signal.SIGKILL)

            async def elsewhere() -> LeaseView | None:
                found = {lease.id: lease for lease in platform.control.leases.views()}
                lease = found[moved.id]
                return lease if lease.epoch > 1 and not lease.recovering and ended.id not in found else None

            now = await until(elsewhere)
            assert now.sandbox_id != moved.sandbox_id
            assert await answers(now.model_copy(update={"token": moved.token}))
            assert await answers(untouched)

            async def all_up() -> bool:
                return {v.standing for v in await platform.control.nodes.views()} == {NodeStanding.UP}

            await until(all_up)  # it was started again
            after = processes(platform)
            assert after["node-1"] != before["node-1"]
            assert after["node-2"] == before["node-2"]
            assert (await lease_on(platform, "node-1", ENDS)).epoch == 1
        finally:
            await platform.close()
        assert not any(psutil.pid_exists(pid) for pid in after.values())

    asyncio.run(main())


@pytest.mark.bwrap
def test_sandboxes_that_outlive_their_node_are_its_successors(home: Path) -> None:
    async def main() -> None:
        platform = await open_platform(home, "bubblewrap")
        try:
            lease = await lease_on(platform, "node-1", ENDS)
            before = processes(platform)["node-1"]
            os.kill(before, signal.SIGKILL)

            async def adopted() -> bool:
                views = {view.name: view for view in await platform.control.nodes.views()}
                node = views["node-1"]
                return node.standing is NodeStanding.UP and node.generation > 1

            await until(adopted)
            (same,) = platform.control.leases.views()
            assert (same.sandbox_id, same.epoch) == (lease.sandbox_id, 1)
            assert await answers(same.model_copy(update={"token": lease.token}))
        finally:
            await platform.close()

    asyncio.run(main())


async def abandon(platform: Platform) -> None:
    """What is left when control is killed: the nodes, with nobody to talk to."""
    await platform.control.close()
    assert isinstance(platform.source, ProcessNodes)
    for process in platform.source.processes:
        await process.abandon()
    await platform.control.write_down()
    await platform._database.close()


def test_a_control_that_returns_takes_its_nodes_and_leases_over_as_they_are(home: Path) -> None:
    async def main() -> None:
        platform = await open_platform(home, "fake")
        leases = [await platform.control.leases.create(ENDS) for _ in range(4)]
        before = processes(platform)
        await abandon(platform)
        assert all([await answers(lease) for lease in leases])  # nobody noticed
        again = await open_platform(home, "fake")
        try:
            assert processes(again) == before
            found = {lease.id: lease.sandbox_id for lease in again.control.leases.views()}
            assert found == {lease.id: lease.sandbox_id for lease in leases}
            assert all([await answers(lease) for lease in leases])
            await again.control.leases.create(ENDS)
        finally:
            await again.close()

    asyncio.run(main())


def test_nodes_that_are_left_alone_end_themselves(home: Path) -> None:
    async def main() -> None:
        platform = await open_platform(home, "fake", alone_s=1.0)
        pids = processes(platform).values()
        await platform.control.leases.create(ENDS)
        await abandon(platform)

        async def over() -> bool:
            return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)

        await until(over)
        assert not list((home / "run").glob("*/sb-*"))
        assert not list((home / "nodes").glob("*.json"))

    asyncio.run(main())


def test_a_start_with_fewer_nodes_ends_the_others(home: Path) -> None:
    async def main() -> None:
        platform = await open_platform(home, "fake")
        pids = processes(platform)
        await abandon(platform)
        alone = await Platform.open(PlatformSettings(home, runtime="fake", nodes=1))
        try:
            assert processes(alone) == {"node-1": pids["node-1"]}

            async def over() -> bool:
                return (
                    psutil.Process(pids["node-2"]).status() == "zombie" if psutil.pid_exists(pids["node-2"]) else True
                )

            await until(over)
        finally:
            await alone.close()

    asyncio.run(main())
