"""What `rock doctor` looks at. Each check says what it found, whether that blocks, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rock.cli import _state
from rock.sdk.home import DEFAULT_HOST, DEFAULT_PORT, read_server

OLDEST_PYTHON = (3, 11)
# Below the first nothing works for long; below the second an image build may fail.
BLOCKING_FREE_BYTES = 256 << 20
ENOUGH_FREE_BYTES = 4 << 30
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Verdict(StrEnum):
    OK = "ok"
    MISSING = "missing"  # something does not work without it; the platform does
    BLOCKS = "blocks"  # the platform cannot run


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """A command line, as it can be pasted."""


def python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Check("python", Verdict.OK, version)
    wanted = ".".join(str(part) for part in OLDEST_PYTHON)
    return Check("python", Verdict.BLOCKS, f"{version}, needs {wanted}", f"apt-get install python{wanted}")


def disk(home: Path) -> Check:
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("state directory", Verdict.BLOCKS, f"{existing} may not be written", "export ROCK_HOME=~/.rock")
    free_bytes = shutil.disk_usage(existing).free
    found = f"{home}, {free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes < BLOCKING_FREE_BYTES:
        return Check("state directory", Verdict.BLOCKS, found, "docker system prune, or export ROCK_HOME=/larger/disk")
    if free_bytes < ENOUGH_FREE_BYTES:
        return Check("state directory", Verdict.MISSING, f"{found}: little for images", "docker system prune")
    return Check("state directory", Verdict.OK, found)


def server(home: Path) -> Check:
    seen = read_server(home)
    if _state.lock_is_held(home) and seen is not None and seen.alive:
        who = f"guardian {seen.guardian_pid}" if seen.guarded else "nobody starts it again"
        return Check("platform", Verdict.OK, f"runs at {seen.url}, pid {seen.pid}, {who}")
    if seen is not None and seen.guarded:
        return Check("platform", Verdict.MISSING, f"process {seen.pid} died; guardian {seen.guardian_pid} restarts it")
    if seen is not None and seen.gave_up:
        return Check("platform", Verdict.MISSING, seen.gave_up, "rock logs; rock up -d")
    if seen is not None:
        return Check("platform", Verdict.MISSING, f"process {seen.pid} ended without being stopped", "rock up -d")
    return Check("platform", Verdict.OK, "not running")


def port(home: Path) -> Check:
    seen = read_server(home)
    if seen is not None and (seen.alive or seen.guarded) and seen.url.endswith(f":{DEFAULT_PORT}"):
        return Check("port", Verdict.OK, f"{DEFAULT_PORT} is the platform's")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((DEFAULT_HOST, DEFAULT_PORT))
        except OSError as error:
            return Check(
                "port", Verdict.MISSING, f"{DEFAULT_PORT}: {error.strerror}", f"rock up -d --port {DEFAULT_PORT + 1}"
            )
    return Check("port", Verdict.OK, f"{DEFAULT_PORT} is free")


def browser() -> Check:
    if found := next((path for name in BROWSERS if (path := shutil.which(name))), ""):
        return Check("chromium", Verdict.OK, found)
    return Check("chromium", Verdict.MISSING, "not installed; browser tests are skipped", "apt-get install chromium")


def package(name: str, what_for: str, extra: str) -> Check:
    """Whether a package is installed, without importing it."""
    if importlib.util.find_spec(name) is not None:
        try:
            return Check(name, Verdict.OK, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            return Check(name, Verdict.OK, "installed")
    remedy = f"{sys.executable} -m pip install 'rock-roll[{extra}]'"
    return Check(name, Verdict.MISSING, f"not installed; needed {what_for}", remedy)


def local_checks(home: Path) -> Iterator[Check]:
    """Everything that needs neither a runtime nor a platform."""
    yield python()
    yield disk(home)
    yield server(home)
    yield port(home)
    yield package("torch", "to train", "train")
    yield package("streamlit", "for the dashboard", "dashboard")
    yield browser()
