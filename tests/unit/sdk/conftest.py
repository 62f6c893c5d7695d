"""The real platform on the fake runtime, served on a real port in the test's own loop."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rock.api.app import create_app
from rock.api.server import serve
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.domain.errors import NotFound
from rock.runtimes.fake import FakeRuntime
from rock.sdk import Rock
from rock.wire.models import EnvView, PoolSize, SandboxSpec


class ToyCatalog:
    """One environment, built: the fake runtime's toy."""

    def names(self) -> Sequence[str]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=self._known(name), version="1", description="d", recovery="replay", built=True)

    def tasks(self, name: str, split: str) -> Sequence[str]:
        self._known(name)
        return ("3", "4")

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="toy:1", env=self._known(name), entry="toy:Env")

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=1)

    def _known(self, name: str) -> str:
        if name != "toy":
            raise NotFound(f"no environment {name!r}", hint="Known: toy.")
        return name


@dataclass
class Served:
    url: str
    home: Path
    platform: Platform
    runtime: FakeRuntime

    def client(self, **options: Any) -> Rock:
        return Rock(self.url, **options)


Serving = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """``async with serving() as served``: a platform on a free port."""
    homes: list[Path] = []

    @asynccontextmanager
    async def start(*, port: int = 0, key: str = "", catalog: Any = None) -> AsyncIterator[Served]:
        homes.append(Path(tempfile.mkdtemp(prefix="rs-")))
        runtime = FakeRuntime()
        settings = PlatformSettings(
            home=homes[-1], probe_interval_s=0.1, probe_timeout_s=0.5, dead_after_s=1.0, reconcile_interval_s=0.2
        )
        platform = await Platform.open(settings, runtime=runtime, catalog=catalog or ToyCatalog())
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        app = create_app(platform.control, key=key)
        server = asyncio.create_task(serve(app, "127.0.0.1", port, ready.set_result))
        try:
            await asyncio.wait({ready, server}, return_when=asyncio.FIRST_COMPLETED)
            yield Served(await ready, homes[-1], platform, runtime)
        finally:
            platform.control.request_shutdown()
            await server
            await platform.close()
            await runtime.destroy()

    yield start
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
