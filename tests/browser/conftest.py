"""A real platform on the fake runtime with a reported run, the real dashboard in front of it, and a real Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rock.sdk import LeaseRequest, RockSync

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

SANDBOXES = 5
NARROW = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}


@dataclass
class FakePlatform:
    """A platform process that a test may end, and start again at the same address."""

    home: Path
    url: str = ""
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        port = self.url.rpartition(":")[2] if self.url else "0"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_platform.py"), str(self.home), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the platform did not come up"

    def fail(self, sandbox_id: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"kill {sandbox_id}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Scene:
    """What a module's tests look at."""

    platform: FakePlatform
    address: str
    run_id: str
    sandboxes: list[str]
    failed: str


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    from seed_run import seed

    from dashboard import server

    home = Path(tempfile.mkdtemp(prefix="rt-"))
    platform = FakePlatform(home)
    patch = pytest.MonkeyPatch()
    patch.setenv("ROCK_HOME", str(home / "dash"))
    for name in ("ROCK_URL", "ROCK_KEY"):
        patch.delenv(name, raising=False)
    try:
        platform.start()
        with RockSync(platform.url) as rock:
            run_id = seed(rock, steps=120, episodes=400)
            leases = [
                rock.create_lease(LeaseRequest(image="toy-image", ttl_s=600, run_id=run_id)) for _ in range(SANDBOXES)
            ]
        platform.fail(leases[0].sandbox_id)
        child, served = server.start("127.0.0.1", 0, platform.url)
        try:
            ids = [lease.sandbox_id for lease in leases]
            yield Scene(platform, served.url, run_id, ids[1:], ids[0])
        finally:
            server.end(child)
    finally:
        platform.kill()
        patch.undo()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A platform with keys, and a dashboard that was given one which may only read."""
    from dashboard import server

    home = Path(tempfile.mkdtemp(prefix="rt-"))
    platform = FakePlatform(home)
    monkeypatch.setenv("ROCK_HOME", str(home / "dash"))
    monkeypatch.delenv("ROCK_URL", raising=False)
    monkeypatch.delenv("ROCK_KEY", raising=False)
    try:
        platform.start()
        with RockSync(platform.url) as rock:
            admin = rock.create_key("boss", scope="admin").secret
        with RockSync(platform.url, key=admin) as rock:
            monkeypatch.setenv("ROCK_KEY", rock.create_key("wall", scope="read").secret)
            lease = rock.create_lease(LeaseRequest(image="toy-image", ttl_s=600))
        child, served = server.start("127.0.0.1", 0, platform.url)
        try:
            yield Scene(platform, served.url, "", [lease.sandbox_id], "")
        finally:
            server.end(child)
    finally:
        platform.kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from dashboard.screenshots import browser

    with browser() as found:
        yield found


@dataclass
class Visit:
    """One open page and what it did besides showing itself."""

    page: Page
    hosts: set[str]
    errors: list[str]


@pytest.fixture
def visit(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A page that records its own errors and whom it talks to. Parametrized indirectly, with another size."""
    size = getattr(request, "param", WIDE)
    context = chromium.new_context(viewport=size, color_scheme="light")
    page = context.new_page()
    found = Visit(page, set(), [])
    page.on("request", lambda r: found.hosts.add(r.url.split("/")[2]) if r.url.startswith(("http", "ws")) else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    yield found
    context.close()
