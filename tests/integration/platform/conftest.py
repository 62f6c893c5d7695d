"""The platform on a real runtime, under an instance of its own; nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rock.api.app import create_app
from rock.api.server import serve
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings, instance_of
from rock.runtimes.base import Runtime
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.select import make_runtime
from rock.sdk import Rock
from rock.wire.models import LeaseView, SandboxSpec, SandboxView

FIXTURES = Path(__file__).parents[2] / "fixtures" / "envs"
CHILD = """
import asyncio, pathlib, sys
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.wire.models import LeaseRequest, SandboxSpec

async def main(home, runtime, image):
    platform = await Platform.open(PlatformSettings(pathlib.Path(home), runtime=runtime))
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


class Stage:
    """A home of its own, and what every test here does with it."""

    def __init__(self, home: Path, runtime: str) -> None:
        self.home = home
        self.runtime = runtime

    @asynccontextmanager
    async def platform(self, **settings: Any) -> AsyncIterator[tuple[Platform, httpx.AsyncClient]]:
        platform = await Platform.open(PlatformSettings(self.home, runtime=self.runtime, **settings))
        transport = httpx.ASGITransport(create_app(platform.control, key=""))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1", timeout=90) as http:
                yield platform, http
        finally:
            await platform.close()

    @asynccontextmanager
    async def served(self, catalog: EnvCatalog) -> AsyncIterator[Rock]:
        """A platform that clients reach by its address, with the environments of ``catalog``."""
        platform = await Platform.open(PlatformSettings(self.home, runtime=self.runtime), catalog=catalog)
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(create_app(platform.control, key=""), "127.0.0.1", 0, ready.set_result))
        try:
            async with asyncio.timeout(30):
                url = await ready
            async with Rock(url) as rock:
                yield rock
        finally:
            platform.control.request_shutdown()
            await server
            await platform.close()

    def built(self, env: str, **how: Any) -> EnvCatalog:
        """The environments of the fixtures, ``env`` built for this home."""
        catalog = EnvCatalog(self.home, search=[FIXTURES])
        build_environment(catalog, env, quick=True, **how)
        return catalog

    def killed_platform(self, image: str) -> list[LeaseView]:
        """Two leases, and a ready sandbox beside them, of a platform that was killed with -9."""
        argv = [sys.executable, "-c", CHILD, str(self.home), self.runtime, image]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            return [LeaseView.model_validate_json(child.stdout.readline()) for _ in range(2)]
        finally:
            child.kill()
            child.communicate()

    def own_runtime(self) -> Runtime:
        return make_runtime(self.runtime, instance_of(self.home), self.home)

    @staticmethod
    async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 30.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := await condition()):
            assert time.monotonic() < deadline, f"not within {within_s} s"
            await asyncio.sleep(0.02)
        return found

    async def failed(self, http: httpx.AsyncClient, sandbox_id: str, within_s: float = 10.0) -> SandboxView:
        """The sandbox as soon as it has failed."""

        async def look() -> SandboxView | None:
            found = [SandboxView.model_validate(v) for v in (await http.get("/sandboxes?state=failed")).json()]
            return next((view for view in found if view.id == sandbox_id), None)

        view: SandboxView = await self.until(look, within_s)
        return view

    @staticmethod
    async def lease(http: httpx.AsyncClient, spec: SandboxSpec) -> LeaseView:
        response = await http.post("/leases", json={"spec": spec.model_dump(mode="json"), "wait_s": 60})
        assert response.status_code == 201, response.text
        return LeaseView.model_validate(response.json())

    async def shared_directory_is_bounded(self, http: httpx.AsyncClient, lease: LeaseView) -> None:
        """Under root nothing can be written into it; else the sandbox that fills it is ended."""
        junk = "for n in 1 2 3 4; do dd if=/dev/zero of=/run/rock/junk$n bs=1M count=10; done"
        argv = ["sh", "-c", f"{junk}; echo >> /run/rock/guest.pyz; chmod 777 /run/rock"]
        response = await http.post(f"/sandboxes/{lease.sandbox_id}/exec", json={"argv": argv, "timeout_s": 60})
        if os.geteuid() == 0:
            said = response.json()["stderr"]
            assert said.count("Permission denied") == 4 + 1, said
            assert "Operation not permitted" in said
            names = os.listdir(Path(lease.endpoint.socket_path).parent)
            assert sorted(names) == ["guest.pyz", "guest.sock"]
        else:
            failed = await self.failed(http, lease.sandbox_id)
            assert failed.evidence is not None
            assert failed.evidence.cause == "disk"

    async def sweep(self) -> None:
        runtime = self.own_runtime()
        for left in await runtime.list_owned():
            await runtime.stop(left.handle)
        await runtime.close()


@pytest.fixture(scope="session")
def docker_base() -> str:
    from rock.runtimes.images import ensure_base_image

    return ensure_base_image()


def _stage(runtime: str) -> Iterator[Stage]:
    home = Path(tempfile.mkdtemp(prefix="rk"))
    home.chmod(0o711)
    stage = Stage(home, runtime)
    yield stage
    asyncio.run(stage.sweep())
    shutil.rmtree(home, ignore_errors=True)
    assert not os.path.exists(home)


@pytest.fixture
def on_docker() -> Iterator[Stage]:
    yield from _stage("docker")


@pytest.fixture
def on_bubblewrap() -> Iterator[Stage]:
    yield from _stage("bubblewrap")


@pytest.fixture
def on_fake() -> Iterator[Stage]:
    yield from _stage("fake")
