"""One platform a runtime, for all tests here; each takes sandboxes of its own from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rock.sdk.home import read_server
from tests.conftest import bubblewrap_problem, docker_problem

ROCK = [sys.executable, "-m", "rock.cli"]


@contextmanager
def platform(runtime: str) -> Iterator[tuple[str, Path]]:
    home = Path(tempfile.mkdtemp(prefix="rs-"))
    home.chmod(0o711)  # sandboxes pass through it as another user
    environ = {k: v for k, v in os.environ.items() if k not in {"ROCK_URL", "ROCK_KEY", "ROCK_HOME"}}
    where = ["--home", str(home)]
    try:
        up = ["up", "--detach", *where, "--runtime", runtime, "--port", "0", "--capacity", "16"]
        subprocess.run([*ROCK, *up], check=True, env=environ, stdout=subprocess.DEVNULL)
        server = read_server(home)
        assert server is not None
        yield server.url, home
    finally:
        subprocess.run([*ROCK, "down", *where], check=True, env=environ, stdout=subprocess.DEVNULL)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def _bubblewrap() -> Iterator[tuple[str, Path]]:
    if reason := bubblewrap_problem():
        pytest.skip(reason)
    with platform("bubblewrap") as found:
        yield found


@pytest.fixture(scope="session")
def on_bubblewrap(_bubblewrap: tuple[str, Path]) -> str:
    return _bubblewrap[0]


@pytest.fixture(scope="session")
def bubblewrap_home(_bubblewrap: tuple[str, Path]) -> str:
    return str(_bubblewrap[1])


@pytest.fixture(scope="session")
def on_docker() -> Iterator[str]:
    if reason := docker_problem():
        pytest.skip(reason)
    from rock.runtimes.images import ensure_base_image

    ensure_base_image()
    with platform("docker") as (url, _):
        yield url


@pytest.fixture(
    params=[pytest.param("bubblewrap", marks=pytest.mark.bwrap), pytest.param("docker", marks=pytest.mark.docker)]
)
def url(request: pytest.FixtureRequest) -> str:
    """Of a platform on each runtime."""
    found: str = request.getfixturevalue(f"on_{request.param}")
    return found
