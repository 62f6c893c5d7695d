"""The whole platform on the fake runtime, spoken to over HTTP without a socket."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from rock.api.app import create_app
from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings
from rock.domain.backoff import BackoffPolicy
from rock.domain.errors import NotFound
from rock.runtimes.fake import FakeRuntime
from rock.wire.models import EnvView, PoolSize, SandboxSpec


class ToyCatalog:
    """One environment, built."""

    spec_of_toy = SandboxSpec(image="toy:1", env="toy", entry="toy:Env")

    def _known(self, name: str) -> None:
        if name != "toy":
            raise NotFound(f"no environment {name!r}", hint="Known: toy.")

    def names(self) -> Sequence[str]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        self._known(name)
        return EnvView(name="toy", version="1", description="d", recovery="replay", built=True, splits={"train": 2})

    def tasks(self, name: str, split: str) -> Sequence[str]:
        self._known(name)
        if split != "train":
            raise NotFound(f"environment 'toy' has no split {split!r}")
        return ("a", "b")

    def spec(self, name: str) -> SandboxSpec:
        self._known(name)
        return self.spec_of_toy

    def pool_size(self, name: str) -> PoolSize:
        self._known(name)
        return PoolSize(ready=2)


@dataclass
class Served:
    platform: Platform
    runtime: FakeRuntime
    http: httpx.AsyncClient
    catalog: ToyCatalog

    async def get(self, path: str, status: int = 200, **params: Any) -> Any:
        response = await self.http.get(path, params=params or None)
        assert response.status_code == status, response.text
        return response.json()

    async def post(self, path: str, body: Any = None, status: int = 201) -> Any:
        response = await self.http.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def post_with(self, headers: dict[str, str], path: str, body: Any, status: int = 201) -> Any:
        response = await self.http.post(path, json=body, headers=headers)
        assert response.status_code == status, response.text
        return response.json()

    async def until(self, condition: Callable[[], Awaitable[Any]], within_s: float = 8.0) -> Any:
        deadline = asyncio.get_running_loop().time() + within_s
        while not (found := await condition()):
            assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
            await asyncio.sleep(0.01)
        return found


@pytest.fixture
def short_home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rk"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def served(short_home: Path) -> Iterator[Callable[..., Any]]:
    """``async with served(capacity=2) as s``: a platform; the same home and runtime when entered again."""
    runtime = FakeRuntime()

    @asynccontextmanager
    async def make(key: str = "", keep: bool = False, **settings: Any) -> AsyncIterator[Served]:
        chosen = {"probe_interval_s": 0.05, "probe_timeout_s": 0.2, "dead_after_s": 0.5, "reconcile_interval_s": 0.2}
        chosen |= {"backoff": BackoffPolicy(0.02, 0.2)} | settings
        catalog = ToyCatalog()
        platform = await Platform.open(PlatformSettings(short_home, **chosen), runtime=runtime, catalog=catalog)
        app = create_app(platform.control, key=key)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1/v1") as http:
                yield Served(platform, runtime, http, catalog)
        finally:
            await platform.close(keep_sandboxes=keep)

    yield make
    asyncio.run(runtime.destroy())
