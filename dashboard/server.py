"""The process that serves the page: started, found again, stopped. No Streamlit here; it runs in a child.

Invariants: the child listens on the given address only and sends nothing to anybody; a foreground parent ends it on any
signal it can catch, and after a `kill -9` of the parent `rock dashboard --stop` still finds it;
``dashboard.json`` in the state directory names a process by pid *and* start time, so a stale file never blocks a start
and never gets a stranger killed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from dashboard.palette import streamlit_theme
from rock.sdk import Conflict, DeadlineExceeded, PlatformUnavailable
from rock.sdk.home import rock_home

START_TIMEOUT_S = 60.0  # a cold start reads pandas and plotly from disk: 3 s here, more on a busy machine
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.1
_START_SLACK_S = 2.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Served:
    """A dashboard that was started from this state directory."""

    pid: int
    started_s: float
    """Start of the process, seconds since the epoch: tells it from a later one that got the same pid."""
    url: str

    def process(self) -> psutil.Process | None:
        """The very process, if it still lives."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_s) > _START_SLACK_S:
                return None
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def record_path() -> Path:
    return rock_home() / "dashboard.json"


def log_path() -> Path:
    return rock_home() / "logs" / "dashboard.log"


def running() -> Served | None:
    """The dashboard of this state directory, if one runs. An unreadable or outdated record counts as none."""
    try:
        served = Served(**json.loads(record_path().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return served if served.process() is not None else None


def record(served: Served) -> None:
    record_path().parent.mkdir(parents=True, exist_ok=True)
    record_path().write_text(json.dumps(asdict(served)) + "\n")


def forget(served: Served) -> None:
    """Remove the record if it is still this one's."""
    current = running()
    if current is None or current == served:
        record_path().unlink(missing_ok=True)


def check_port(host: str, port: int) -> None:
    """Raises Conflict if nobody may listen there now."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Conflict(
            f"The dashboard cannot listen on {host}:{port}: {error.strerror or error}.",
            hint=f"Choose another port ('rock dashboard --port {port + 1}'), or stop what uses this one.",
        ) from error


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def command(host: str, port: int) -> list[str]:
    """The command line that serves the page: quiet, private, without a file watcher."""
    hosts = ["localhost", "127.0.0.1", "[::1]"] if host in LOOPBACK else ["*"]
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": host,
        "client.toolbarMode": "minimal",
        "client.showErrorLinks": "false",
        "runner.magicEnabled": "false",
        "logger.level": "warning",
        **streamlit_theme(),
    }
    # A foreign page must not reach a loopback service under a name of its own.
    pairs = [*options.items(), *(("server.allowedHosts", name) for name in hosts)]
    flags = [part for option, value in pairs for part in (f"--{option}", value)]
    return [sys.executable, "-m", "dashboard.app.serve", *flags]


def start(host: str, port: int, platform_url: str | None) -> tuple[subprocess.Popen[bytes], Served]:
    """Serve the page from a child in a session of its own; returns when it answers.

    Raises: Conflict (the port is taken), PlatformUnavailable (the child ended; ``cause`` has its last words),
    DeadlineExceeded (it does not answer).
    """
    port = port or free_port(host)
    check_port(host, port)
    environ = dict(os.environ)
    if platform_url:
        environ["ROCK_URL"] = platform_url
    log_path().parent.mkdir(parents=True, exist_ok=True)
    with log_path().open("wb") as log:
        child = subprocess.Popen(
            command(host, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child in order
        )
    try:
        _wait_until_up(child, host, port)
    except BaseException:
        end(child)
        raise
    shown = f"[{host}]" if ":" in host else host
    return child, Served(child.pid, psutil.Process(child.pid).create_time(), f"http://{shown}:{port}")


def _wait_until_up(child: subprocess.Popen[bytes], host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    where = f"[{reachable}]" if ":" in reachable else reachable
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if child.poll() is not None:
            raise PlatformUnavailable(
                f"The dashboard ended while starting (exit code {child.returncode}).",
                hint=f"Its last words are in {log_path()}.",
                cause=_last_words(),
            )
        try:
            with opener.open(f"http://{where}:{port}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise DeadlineExceeded(
        f"The dashboard did not answer within {START_TIMEOUT_S:.0f} s.", hint=f"See {log_path()}.", cause=_last_words()
    )


def _last_words(lines: int = 8) -> str:
    try:
        return "\n".join(log_path().read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def stop() -> Served | None:
    """End the dashboard of this state directory, whoever started it; returns what was ended."""
    served = running()
    if served is None:
        record_path().unlink(missing_ok=True)
        return None
    process = served.process()
    if process is not None:
        try:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    forget(served)
    return served
