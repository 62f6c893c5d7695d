"""What every test may use. Parts that cannot run on a machine are skipped with the reason, never silently."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test depends on how fast the machine is at the moment; a failure can be replayed from what it prints.
settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")
# Two tests at once on two cores: libraries must not each start a pool of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def docker_problem() -> str:
    """Why Docker cannot be used here; empty when it can."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=20)
        client.ping()
        client.close()
    except DockerException as error:
        return f"no Docker engine answers ({error}); 'make docker' starts one where it can"
    return ""


@functools.cache
def bubblewrap_problem() -> str:
    """Why bubblewrap cannot be used here; empty when it can."""
    return "" if shutil.which("bwrap") else "bubblewrap is not installed ('apt-get install bubblewrap')"


@functools.cache
def chromium_problem() -> str:
    """Why no browser test can run here; empty when it can."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return "" if found else "Chromium is not installed ('apt-get install chromium')"


NEEDS = {"docker": docker_problem, "bwrap": bubblewrap_problem, "browser": chromium_problem}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, problem in NEEDS.items():
            if item.get_closest_marker(marker) and (reason := problem()):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rock_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of the test's own, short enough for unix socket paths."""
    home = Path(tempfile.mkdtemp(prefix="rt-"))
    monkeypatch.setenv("ROCK_HOME", str(home))
    for name in ("ROCK_URL", "ROCK_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield home
    shutil.rmtree(home, ignore_errors=True)
