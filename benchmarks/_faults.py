"""Faults as they happen to a platform on Docker, each done to the real thing from outside.

Blocking; needs root where it sends signals to what runs in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from docker.api import APIClient

from rock.runtimes.docker import LABEL_SANDBOX
from rock.sdk.home import read_server

Undo = Callable[[], None]

_HOG = "held = []\nwhile True: held.append(bytearray(1 << 24))"
_FORKS = "import os, time\nwhile True:\n  try: os.fork() or time.sleep(20)\n  except OSError: time.sleep(0.01)"
_FILL = "file = open('/tmp/fill', 'wb')\nwhile True: file.write(bytes(1 << 20))"

INSIDE = {"oom": _HOG, "fork_bomb": _FORKS, "disk_full": _FILL}
"""Programs that a sandbox is made to run, by the fault's name."""
IN_SANDBOX = ("kill_container", "kill_env", "sigstop", "pause", *INSIDE, "slow_10x")
OF_PLATFORM = ("cut_node", "kill_node", "kill_control")

_SLOW_PERIOD_S = 0.05


class Faults:
    """``strike`` does one and returns how to undo it; what it is done to may be gone by then."""

    def __init__(self, api: APIClient, home: Path) -> None:
        self._api = api
        self._home = home

    def on_sandbox(self, fault: str, sandbox_id: str) -> Undo:
        container = self._container(sandbox_id)
        if fault == "kill_container":
            self._api.kill(container)
        elif fault == "kill_env":
            os.kill(self._env(container).pid, signal.SIGKILL)
        elif fault == "sigstop":
            os.kill(self._guest(container).pid, signal.SIGSTOP)
        elif fault == "pause":
            self._api.pause(container)
        elif fault == "slow_10x":
            return _slowed(self._env(container))
        else:
            exec_id = self._api.exec_create(container, ["python3", "-c", INSIDE[fault]])["Id"]
            self._api.exec_start(exec_id, detach=True)
        return lambda: None

    def on_node(self, fault: str, node: str) -> Undo:
        pid = json.loads((self._home / "nodes" / f"{node}.json").read_text())["pid"]
        if fault == "kill_node":
            os.kill(pid, signal.SIGKILL)
            return lambda: None
        os.kill(pid, signal.SIGSTOP)
        return lambda: _quietly(pid, signal.SIGCONT)

    def on_control(self) -> Undo:
        server = read_server(self._home)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        return lambda: None

    def _container(self, sandbox_id: str) -> str:
        found = self._api.containers(filters={"label": f"{LABEL_SANDBOX}={sandbox_id}"})
        if not found:
            raise LookupError(f"no container of sandbox {sandbox_id}")
        container: str = found[0]["Id"]
        return container

    def _guest(self, container: str) -> psutil.Process:
        """The child of the container's init."""
        return psutil.Process(self._api.inspect_container(container)["State"]["Pid"]).children()[0]

    def _env(self, container: str) -> psutil.Process:
        return self._guest(container).children()[0]


def _slowed(process: psutil.Process) -> Undo:
    """It runs a tenth of the time."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            _quietly(process.pid, signal.SIGSTOP)
            over.wait(_SLOW_PERIOD_S * 0.9)
            _quietly(process.pid, signal.SIGCONT)
            time.sleep(_SLOW_PERIOD_S * 0.1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def undo() -> None:
        over.set()
        thread.join()

    return undo


def _quietly(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def saturated() -> Iterator[None]:
    """Every core is busy twice over."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
