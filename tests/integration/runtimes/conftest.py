"""A runtime's whole way: start, reach the guest, stop, and leave nothing behind."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rock.domain.errors import SandboxLost
from rock.runtimes.base import Runtime
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.images import ensure_base_image
from rock.wire.guest_client import GuestClient
from rock.wire.models import SandboxSpec

FIXTURES = Path(__file__).parents[2] / "fixtures" / "envs"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A socket's path must be short, and pytest's own temporary directories are not."""
    path = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def instance() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def docker_base() -> str:
    return ensure_base_image()


@pytest.fixture(scope="session")
def counter_catalog() -> Iterator[EnvCatalog]:
    """The counter environment's bundle, without an image, where any user may read it."""
    home = Path(tempfile.mkdtemp(prefix="rk-home-", dir="/tmp"))
    home.chmod(0o755)
    catalog = EnvCatalog(home, search=[FIXTURES])
    build_environment(catalog, "counter", quick=True, image=False)
    yield catalog
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def counter_spec(docker_base: str, counter_catalog: EnvCatalog) -> SandboxSpec:
    """The counter in an image of its own."""
    build_environment(counter_catalog, "counter", quick=True)
    return counter_catalog.spec("counter")


class Lab:
    """What every test here does, in one short directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @staticmethod
    def new_id() -> str:
        return f"sb-{uuid.uuid4().hex[:10]}"

    async def reach(self, sandbox_id: str, within_s: float = 20.0) -> GuestClient:
        """The guest's client as soon as it answers."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return await GuestClient.connect_unix(str(self.directory / sandbox_id / "guest.sock"))
            except SandboxLost:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def sandbox(self, runtime: Runtime, spec: SandboxSpec) -> AsyncIterator[tuple[str, str, GuestClient]]:
        """(sandbox id, handle, client) of a started sandbox that is stopped at the end."""
        sandbox_id = self.new_id()
        handle = await runtime.start(sandbox_id, spec, self.directory / sandbox_id)
        try:
            client = await self.reach(sandbox_id)
            try:
                yield sandbox_id, handle, client
            finally:
                await client.close()
        finally:
            await runtime.stop(handle)

    @staticmethod
    async def run(client: GuestClient, *argv: str) -> str:
        """Both outputs of a program inside."""
        value = await client.call("exec", argv=list(argv))
        return str(value["stdout"] + value["stderr"])

    @staticmethod
    async def until(condition: Callable[[], Coroutine[Any, Any, bool]], what: str, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not await condition():
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
            await asyncio.sleep(0.02)


@pytest.fixture
def lab(short_dir: Path) -> Lab:
    return Lab(short_dir)
