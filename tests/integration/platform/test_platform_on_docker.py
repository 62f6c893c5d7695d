"""Real containers: killed, paused and starved ones are noticed within seconds; a killed platform is taken over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rock.api.app import create_app
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings, instance_of
from rock.runtimes.docker import DockerRuntime
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseView, SandboxSpec, SandboxView

pytestmark = pytest.mark.docker


@asynccontextmanager
async def platform_at(home: Path, **settings: Any) -> AsyncIterator[tuple[Platform, httpx.AsyncClient]]:
    platform = await Platform.open(PlatformSettings(home, runtime="docker", **settings))
    transport = httpx.ASGITransport(create_app(platform.control, key=""))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1", timeout=90) as http:
            yield platform, http
    finally:
        await platform.close()


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)
    return found


async def lease_of(http: httpx.AsyncClient, spec: SandboxSpec) -> LeaseView:
    response = await http.post("/leases", json={"spec": spec.model_dump(mode="json"), "wait_s": 60})
    assert response.status_code == 201, response.text
    return LeaseView.model_validate(response.json())


async def docker(*argv: str) -> str:
    done = await asyncio.to_thread(subprocess.run, ["docker", *argv], capture_output=True, text=True, check=True)
    return str(done.stdout)


def test_a_killed_container_leaves_evidence_and_the_pool_is_filled_again(docker_base: str, docker_home: Path) -> None:
    spec = SandboxSpec(image=docker_base)

    async def main() -> None:
        async with platform_at(docker_home) as (platform, http):
            await platform.node.set_pool(spec, 1)

            async def warm() -> bool:
                return (await platform.node.view()).pools[0].ready == 1

            await until(warm)
            lease = await lease_of(http, spec)
            async with await GuestClient.connect_unix(lease.endpoint.socket_path) as guest:
                assert (await guest.call("exec", argv=["echo", "hi"], work_s=10))["stdout"] == "hi\n"
            began = time.monotonic()
            await docker("kill", f"rock-{lease.sandbox_id}")

            async def failed() -> SandboxView | None:
                found = (await http.get("/sandboxes", params={"state": "failed"})).json()
                return SandboxView.model_validate(found[0]) if found else None

            view = await until(failed, within_s=10)
            assert time.monotonic() - began < 5
            assert view.id == lease.sandbox_id
            assert (view.evidence.cause, view.evidence.exit_code) == ("exited", 137)
            refused = await http.post(f"/leases/{lease.id}/heartbeat")
            assert refused.json()["type"] == "urn:rock:sandbox-lost"
            await until(warm)

            idle = next(v for v in await platform.node.sandboxes() if v.state == "ready")
            await docker("rm", "-f", f"rock-{idle.id}")

            async def replaced() -> bool:
                return await warm() and idle.id not in {v.id for v in await platform.node.sandboxes()}

            await until(replaced)
            evidence = (await platform.control.sandbox(idle.id)).evidence
            assert evidence is not None
            assert evidence.cause in {"removed", "exited"}  # it is killed first, then removed
        assert await docker("ps", "-aq", "--filter", f"label=rock.instance={platform.instance}") == ""

    asyncio.run(main())


def test_a_paused_container_is_suspected_and_then_given_up(docker_base: str, docker_home: Path) -> None:
    async def main() -> None:
        settings = {"probe_interval_s": 0.2, "probe_timeout_s": 0.5, "dead_after_s": 2.0}
        async with platform_at(docker_home, **settings) as (platform, http):
            lease = await lease_of(http, SandboxSpec(image=docker_base))
            seen: list[SandboxView] = []
            platform.node.on_change(seen.append)
            await docker("pause", f"rock-{lease.sandbox_id}")

            async def gone() -> bool:
                return bool(seen) and seen[-1].state == "gone"

            await until(gone)
            assert [v.state.value for v in seen] == ["suspect", "failed", "gone"]
            evidence = seen[-1].evidence
            assert evidence is not None
            assert evidence.cause == "probe"
            assert "paused" in evidence.detail

    asyncio.run(main())


def test_an_image_that_does_not_exist_is_refused_at_once(docker_home: Path) -> None:
    async def main() -> None:
        async with platform_at(docker_home) as (_, http):
            began = time.monotonic()
            refused = await http.post("/leases", json={"image": "rock-no-such-image:1", "wait_s": 60})
            assert refused.json()["type"] == "urn:rock:image-not-found"
            assert time.monotonic() - began < 10

    asyncio.run(main())


CHILD = """
import asyncio, pathlib, sys
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.wire.models import LeaseRequest, SandboxSpec

async def main(home, image):
    platform = await Platform.open(PlatformSettings(pathlib.Path(home), runtime="docker"))
    leases = [await platform.control.leases.create(LeaseRequest(image=image, ttl_s=600)) for _ in range(2)]
    spec = SandboxSpec(image=image, workdir="/")
    await platform.node.set_pool(spec, 1)
    while not (await platform.node.view()).pools[-1].ready:
        await asyncio.sleep(0.05)
    for lease in leases:
        print(lease.model_dump_json(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


def test_after_a_kill_9_the_leased_are_adopted_and_the_rest_is_swept(docker_base: str, docker_home: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(docker_home), docker_base], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        kept, lost = (LeaseView.model_validate_json(child.stdout.readline()) for _ in range(2))
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()

    async def main() -> None:
        runtime = DockerRuntime(instance_of(docker_home))
        assert len(await runtime.list_owned()) == 3
        await docker("rm", "-f", f"rock-{lost.sandbox_id}")
        async with platform_at(docker_home) as (_, http):
            assert [lease["id"] for lease in (await http.get("/leases")).json()] == [kept.id]
            assert [o.sandbox_id for o in await runtime.list_owned()] == [kept.sandbox_id]
            endpoint = LeaseView.model_validate((await http.get("/leases")).json()[0]).endpoint
            hello = {"lease": kept.id, "token": kept.token, "epoch": kept.epoch}
            gateway = (endpoint.gateway_host, endpoint.gateway_port)
            async with await GuestClient.connect_tcp(*gateway, hello) as guest:
                assert (await guest.call("hello"))["epoch"] == kept.epoch
            assert (await http.post(f"/leases/{kept.id}/heartbeat")).status_code == 200
        assert await runtime.list_owned() == []
        await runtime.close()

    asyncio.run(main())
