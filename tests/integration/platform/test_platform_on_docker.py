"""Real containers: killed, paused and starved ones are noticed within seconds; a killed platform is taken over."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseView, SandboxSpec, SandboxView
from tests.integration.platform.containers import docker, left_of

pytestmark = pytest.mark.docker


def test_a_killed_container_leaves_evidence_and_the_pool_is_filled_again(docker_base: str, on_docker: Any) -> None:
    spec = SandboxSpec(image=docker_base)

    async def main() -> None:
        async with on_docker.platform() as (platform, http):
            await platform.node.set_pool(spec, 1)

            async def warm() -> bool:
                return (await platform.node.view()).pools[0].ready == 1

            await on_docker.until(warm)
            lease = await on_docker.lease(http, spec)
            async with await GuestClient.connect_unix(lease.endpoint.socket_path) as guest:
                assert (await guest.call("exec", argv=["echo", "hi"], work_s=10))["stdout"] == "hi\n"
            began = time.monotonic()
            await docker("kill", f"rock-{lease.sandbox_id}")
            view = await on_docker.failed(http, lease.sandbox_id)
            assert time.monotonic() - began < 5
            assert (view.evidence.cause, view.evidence.exit_code) == ("exited", 137)
            refused = await http.post(f"/leases/{lease.id}/heartbeat")
            assert refused.json()["type"] == "urn:rock:sandbox-lost"
            await on_docker.until(warm)

            idle = next(v for v in await platform.node.sandboxes() if v.state == "ready")
            await docker("rm", "-f", f"rock-{idle.id}")

            async def replaced() -> bool:
                return await warm() and idle.id not in {v.id for v in await platform.node.sandboxes()}

            await on_docker.until(replaced)
            evidence = (await platform.control.sandbox(idle.id)).evidence
            assert evidence is not None
            assert (evidence.cause, evidence.last_output) == ("removed", ())  # none of Docker's own words
            assert "from outside" in evidence.detail
        assert await left_of(on_docker.home) == ""

    asyncio.run(main())


def test_a_paused_container_is_suspected_and_then_given_up(docker_base: str, on_docker: Any) -> None:
    async def main() -> None:
        settings = {"probe_interval_s": 0.2, "probe_timeout_s": 1.0, "dead_after_s": 4.0}
        async with on_docker.platform(**settings) as (platform, http):
            lease = await on_docker.lease(http, SandboxSpec(image=docker_base))
            seen: list[SandboxView] = []
            platform.node.on_change(seen.append)
            await docker("pause", f"rock-{lease.sandbox_id}")

            async def gone() -> bool:
                return bool(seen) and seen[-1].state == "gone"

            await on_docker.until(gone)
            assert [v.state.value for v in seen] == ["suspect", "failed", "gone"]
            evidence = seen[-1].evidence
            assert evidence is not None
            assert evidence.cause == "paused"
            assert "paused" in evidence.detail

    asyncio.run(main())


def test_closing_while_sandboxes_start_leaves_none(docker_base: str, on_docker: Any) -> None:
    async def main() -> None:
        async with on_docker.platform() as (platform, _):
            await platform.node.set_pool(SandboxSpec(image=docker_base), 6)

            async def in_the_middle() -> bool:
                pool = (await platform.node.view()).pools[0]
                return bool(pool.ready and pool.starting)

            await on_docker.until(in_the_middle)
        assert await left_of(on_docker.home) == ""
        assert not list(on_docker.home.glob("run/*"))

    asyncio.run(main())


@pytest.mark.parametrize("user", ["", "root"])
def test_the_hosts_disk_is_safe(docker_base: str, on_docker: Any, user: str) -> None:
    async def main() -> None:
        async with on_docker.platform(reconcile_interval_s=0.2) as (_, http):
            lease = await on_docker.lease(http, SandboxSpec(image=docker_base, user=user))
            await on_docker.shared_directory_is_bounded(http, lease)

    asyncio.run(main())


def test_an_image_that_does_not_exist_is_refused_at_once(on_docker: Any) -> None:
    async def main() -> None:
        async with on_docker.platform() as (_, http):
            began = time.monotonic()
            refused = await http.post("/leases", json={"image": "rock-no-such-image:1", "wait_s": 60})
            assert refused.json()["type"] == "urn:rock:image-not-found"
            assert time.monotonic() - began < 10

    asyncio.run(main())


def test_after_a_kill_9_the_leased_and_the_warm_are_adopted(docker_base: str, on_docker: Any) -> None:
    kept, lost = on_docker.killed_platform(docker_base)

    async def main() -> None:
        runtime = on_docker.own_runtime()
        assert len(await runtime.list_owned()) == 3
        await docker("rm", "-f", f"rock-{lost.sandbox_id}")
        async with on_docker.platform() as (_, http):
            assert [lease["id"] for lease in (await http.get("/leases")).json()] == [kept.id]
            owned = {o.sandbox_id for o in await runtime.list_owned()}
            assert kept.sandbox_id in owned
            assert lost.sandbox_id not in owned
            endpoint = LeaseView.model_validate((await http.get("/leases")).json()[0]).endpoint
            hello = {"lease": kept.id, "token": kept.token, "epoch": kept.epoch}
            gateway = (endpoint.gateway_host, endpoint.gateway_port)
            async with await GuestClient.connect_tcp(*gateway, hello) as guest:
                assert (await guest.call("hello"))["epoch"] == kept.epoch
            assert (await http.post(f"/leases/{kept.id}/heartbeat")).status_code == 200
        assert await runtime.list_owned() == []
        await runtime.close()

    asyncio.run(main())
