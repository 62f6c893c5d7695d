"""Platforms as people run them (`rock up -d`), killed in every way; nothing of them is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rock.cli._owners import Item, inventory
from rock.cluster.settings import instance_of, run_dir_of
from rock.domain.errors import RockError
from rock.runtimes.base import Observed
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.select import make_runtime
from rock.sdk import Rock
from rock.sdk.home import ServerFile, read_server

FIXTURES = Path(__file__).parents[2] / "fixtures" / "envs"
T = TypeVar("T")
# For conditions that hold within seconds on a quiet machine: a machine may run a dozen tests at once.
GENEROUS_S = 180.0


class Site:
    """A state directory of its own, and the platform that is run from it."""

    def __init__(self, home: Path, runtime: str, database: str = "") -> None:
        self.home = home
        self.runtime = runtime
        self._environ = {
            **os.environ,
            "ROCK_HOME": str(home),
            "ROCK_ENV_PATH": str(FIXTURES),
            "ROCK_DATABASE": database,
        }
        for name in ("ROCK_URL", "ROCK_KEY"):
            self._environ.pop(name, None)

    # --- the command line

    def rock(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "rock.cli", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=self._environ)
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """The command, left running."""
        argv = [sys.executable, "-m", "rock.cli", *arguments]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environ)

    def up(self, *arguments: str) -> ServerFile:
        self.rock("up", "-d", "--port", "0", "--runtime", self.runtime, *arguments)
        return self.server()

    def server(self) -> ServerFile:
        found = read_server(self.home)
        assert found is not None
        return found

    def build(self) -> None:
        build_environment(
            EnvCatalog(self.home, search=[FIXTURES]), "counter", quick=True, image=self.runtime == "docker"
        )

    # --- what happens to it

    def kill_control(self) -> ServerFile:
        """The platform's process; its guardian lives."""
        server = self.server()
        os.kill(server.pid, signal.SIGKILL)
        return server

    def kill_all(self) -> None:
        server = self.server()
        for pid in (server.guardian_pid, server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def restarted(self, before: ServerFile) -> ServerFile:
        async def look() -> ServerFile | None:
            found = read_server(self.home)
            return found if found is not None and found.pid != before.pid and found.alive else None

        return await until(look)

    async def owned(self) -> list[Observed]:
        runtime = make_runtime(self.runtime, instance_of(self.home), self.home)
        try:
            return list(await runtime.list_owned())
        finally:
            await runtime.close()

    async def leaked(self) -> list[Item]:
        """What of ours has no owner, with the running platform as the judge if there is one."""
        from rock.cli.doctor import asker

        items = await inventory(self.home, asker(self.home))
        return [item for item in items if not item.owner and item.instance == instance_of(self.home)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        async def ask() -> list[dict[str, Any]]:
            async with Rock(self.server().url) as rock:
                return [event.model_dump(mode="json") for event in await rock.events(kind=kind)]

        return asyncio.run(ask())

    def end(self) -> None:
        """`rock down`, and then nothing is left."""
        if (self.home / "instance").exists():
            self.rock("down")
            assert asyncio.run(self.owned()) == []
            assert list(run_dir_of(self.home, instance_of(self.home)).glob("sb-*")) == []


async def until(condition: Callable[[], Awaitable[T | None]], within_s: float = GENEROUS_S) -> T:
    """The first true answer. A platform that does not answer at this moment has given none."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(RockError):
            if found := await condition():
                return found
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.02)


def site(runtime: str, database: str = "") -> Iterator[Site]:
    home = Path(tempfile.mkdtemp(prefix="rs"))
    home.chmod(0o711)
    made = Site(home, runtime, database)
    try:
        yield made
        made.end()
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            made.rock("down", code=None)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def on_fake() -> Iterator[Site]:
    yield from site("fake")


@pytest.fixture
def on_bubblewrap() -> Iterator[Site]:
    yield from site("bubblewrap")


@pytest.fixture
def on_docker() -> Iterator[Site]:
    yield from site("docker")


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("bubblewrap", marks=pytest.mark.bwrap)]
)
def on_each(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from site(request.param)


@contextlib.contextmanager
def small_disk(home: Path, size: str) -> Iterator[None]:
    """``home`` is on a file system of its own, of ``size``."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "rock-test", str(home)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


def fill(home: Path) -> Path:
    """Write until nothing fits any more; returns the file to remove."""
    path = home / "junk"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return path


def measured(**numbers: float) -> None:
    """Printed, never asserted: how long things take is a benchmark's business."""
    print(json.dumps({name: round(number, 3) for name, number in numbers.items()}))


def _of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("store_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


postgres_url = _of(Path(__file__).parents[2] / "unit" / "store" / "conftest.py").postgres_url
