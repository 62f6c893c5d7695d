"""The platform without Docker: real processes in namespaces, killed ones noticed, a killed platform taken over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseView, SandboxSpec

pytestmark = pytest.mark.bwrap
HOST = SandboxSpec(image="host")


def first_process(home: Path, sandbox_id: str) -> psutil.Process:
    """Of the sandbox: the one whose end takes all others with it."""
    shared = str(home / "run" / sandbox_id)
    found = [p for p in psutil.process_iter(["cmdline"]) if shared in (p.info["cmdline"] or [])]
    return max(found, key=lambda process: len(process.parents()))


def processes_of(home: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if any(str(home) in word for word in p.info["cmdline"] or [])]


def test_a_killed_process_leaves_evidence_and_the_pool_is_filled_again(on_bubblewrap: Any) -> None:
    async def main() -> None:
        async with on_bubblewrap.platform() as (platform, http):
            assert (await http.get("/health")).json()["runtime"] == "bubblewrap"
            await platform.node.set_pool(HOST, 1)

            async def warm() -> bool:
                return (await platform.node.view()).pools[0].ready == 1

            await on_bubblewrap.until(warm)
            lease = await on_bubblewrap.lease(http, HOST)
            async with await GuestClient.connect_unix(lease.endpoint.socket_path) as guest:
                assert (await guest.call("exec", argv=["echo", "hi"], work_s=10))["stdout"] == "hi\n"
            began = time.monotonic()
            first_process(on_bubblewrap.home, lease.sandbox_id).send_signal(signal.SIGKILL)
            failed = await on_bubblewrap.failed(http, lease.sandbox_id)
            assert time.monotonic() - began < 5
            assert (failed.evidence.cause, failed.lease_id) == ("exited", lease.id)
            assert (await http.post(f"/leases/{lease.id}/heartbeat")).json()["type"] == "urn:rock:sandbox-lost"
            await on_bubblewrap.until(warm)
        assert processes_of(on_bubblewrap.home) == []
        assert os.listdir(on_bubblewrap.home / "bwrap") == []

    asyncio.run(main())


def test_a_plain_sandbox_needs_no_image(on_bubblewrap: Any) -> None:
    async def main() -> None:
        async with on_bubblewrap.platform() as (_, http):
            response = await http.post("/leases", json={})
            assert LeaseView.model_validate(response.json()).image == "host"

    asyncio.run(main())


def test_the_hosts_disk_is_safe(on_bubblewrap: Any) -> None:
    async def main() -> None:
        async with on_bubblewrap.platform(reconcile_interval_s=0.2) as (_, http):
            await on_bubblewrap.shared_directory_is_bounded(http, await on_bubblewrap.lease(http, HOST))

    asyncio.run(main())


def test_after_a_kill_9_the_leased_and_the_warm_are_adopted(on_bubblewrap: Any) -> None:
    kept, lost = on_bubblewrap.killed_platform("host")
    first_process(on_bubblewrap.home, lost.sandbox_id).send_signal(signal.SIGKILL)

    async def main() -> None:
        runtime = on_bubblewrap.own_runtime()
        assert len(await runtime.list_owned()) == 3
        async with on_bubblewrap.platform() as (_, http):
            for _ in range(200):  # on a busy machine the killed one may still be about to end
                leases = [lease["id"] for lease in (await http.get("/leases")).json()]
                owned = {o.sandbox_id for o in await runtime.list_owned()}
                if leases == [kept.id] and lost.sandbox_id not in owned:
                    break
                await asyncio.sleep(0.05)
            assert leases == [kept.id]
            assert kept.sandbox_id in owned
            assert lost.sandbox_id not in owned
            endpoint = LeaseView.model_validate((await http.get("/leases")).json()[0]).endpoint
            hello = {"lease": kept.id, "token": kept.token, "epoch": kept.epoch}
            async with await GuestClient.connect_tcp(endpoint.gateway_host, endpoint.gateway_port, hello) as guest:
                assert (await guest.call("hello"))["epoch"] == kept.epoch
            assert (await http.post(f"/leases/{kept.id}/heartbeat")).status_code == 200
        assert await runtime.list_owned() == []
        await runtime.close()
        assert processes_of(on_bubblewrap.home) == []

    asyncio.run(main())
