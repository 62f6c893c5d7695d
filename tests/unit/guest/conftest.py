"""A real guest in a process of its own, and an environment that does as it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rock.guest.pack import build_pyz

TOY = textwrap.dedent(
    """
    import os, subprocess, sys, time

    class Toy:
        def __init__(self):
            if os.environ.get("TOY_BROKEN"):
                raise RuntimeError("cannot be made")

        def reset(self, task, seed, options):
            if task == "missing":
                raise KeyError(task)
            if task == "bug":
                raise KeyError("some other key")
            self.steps = 0
            return {"task": task, "seed": seed}, {"options": options, "pid": os.getpid()}

        def step(self, action):
            self.steps += 1
            verb, _, amount = str(action).partition(" ")
            if verb == "sleep": time.sleep(float(amount))
            if verb == "exit": os._exit(int(amount))
            if verb == "raise": raise ValueError("told to raise")
            if verb == "nan": return "", float("nan"), False, False, {}
            if verb == "unserialisable": return object(), 0.0, False, False, {}
            if verb == "short": return "only one"
            if verb == "print":
                print('{"id": 1, "ok": true}'); sys.stderr.write("noise\\n")
                os.write(1, b"\\xff\\x00 raw\\n"); subprocess.run(["echo", "from a child"])
            if verb == "child": subprocess.Popen(["sleep", amount])
            return f"{self.steps}: {action}", 0.5, verb == "end", verb == "cut", {"steps": self.steps}

        def call(self, method, args):
            if method == "echo":
                return args
            raise LookupError(method)

        def close(self):
            print("closed in order")
    """
)


class Guest:
    """The process, and where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, directory: Path) -> None:
        self.process = process
        self.socket = str(socket)
        self.directory = directory


def start(directory: Path, *arguments: str, environ: dict[str, str] | None = None) -> Guest:
    (directory / "guest.pyz").write_bytes(build_pyz())
    (directory / "toy.py").write_text(TOY)
    socket = directory / "s"
    argv = [sys.executable, str(directory / "guest.pyz"), "--socket", str(socket), *arguments]
    process = subprocess.Popen(argv, cwd=directory, env=os.environ | (environ or {}), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20.0
    while not socket.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return Guest(process, socket, directory)


def end(guest: Guest) -> None:
    guest.process.terminate()
    try:
        guest.process.wait(10.0)
    finally:
        guest.process.kill()
        guest.process.wait()


@pytest.fixture
def guest_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rg-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def plain_guest(guest_dir: Path) -> Iterator[Guest]:
    guest = start(guest_dir)
    yield guest
    end(guest)


@pytest.fixture
def toy_guest(guest_dir: Path) -> Iterator[Guest]:
    guest = start(guest_dir, "--entry", "toy:Toy", "--python-path", str(guest_dir))
    yield guest
    end(guest)


@pytest.fixture
def broken_guest(guest_dir: Path) -> Iterator[Guest]:
    guest = start(guest_dir, "--entry", "toy:Toy", "--python-path", str(guest_dir), environ={"TOY_BROKEN": "1"})
    yield guest
    end(guest)


@pytest.fixture
def start_guest() -> Iterator[Callable[..., Guest]]:
    """A guest with arguments of the test's own."""
    started: list[Guest] = []

    def make(directory: Path, *arguments: str) -> Guest:
        started.append(start(directory, *arguments))
        return started[-1]

    yield make
    for guest in started:
        end(guest)
