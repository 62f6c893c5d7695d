"""The process behind ``rock dashboard``: started, found again, stopped, and polite about a port that is taken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from typer import Typer
from typer.testing import CliRunner

from dashboard import server
from dashboard.cli import dashboard
from dashboard.server import Served
from rock.sdk import Conflict

APP = Typer()
APP.command()(dashboard)
SERVE = (
    "import sys; from typer import Typer; from dashboard.cli import dashboard; a = Typer(); a.command()(dashboard); a()"
)


@pytest.fixture(autouse=True)
def _own_home(rock_home: Path) -> None:
    """Each test has a state directory of its own."""


def run(*args: str) -> str:
    result = CliRunner().invoke(APP, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_in_the_background_it_is_found_again_and_stopped():
    started = run("-d", "--port", "0")
    served = server.running()
    assert served is not None
    try:
        assert served.url in started
        assert "rock dashboard --stop" in started
        with urllib.request.urlopen(f"{served.url}/_stcore/health", timeout=5) as answer:
            assert answer.status == 200
        assert f"already runs: {served.url}" in run("-d").replace("\n", "")
    finally:
        stopped = run("--stop")
    assert f"Stopped the dashboard at {served.url}" in stopped
    assert not psutil.pid_exists(served.pid) or psutil.Process(served.pid).status() == psutil.STATUS_ZOMBIE
    assert not server.record_path().exists()
    assert "No dashboard runs" in run("--stop")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_ends_with_its_terminal(how):
    process = subprocess.Popen([sys.executable, "-c", SERVE, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("Dashboard: http://127.0.0.1:")
        served = server.running()
        assert served is not None
        process.send_signal(how)
        assert process.wait(20) == 0
        assert served.process() is None
        assert not server.record_path().exists()
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_named_with_the_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"cannot listen on 127.0.0.1:{port}") as error:
            run("--port", str(port))
    assert f"--port {port + 1}" in error.value.hint
    assert server.running() is None


def test_a_record_whose_pid_belongs_to_somebody_else_is_not_believed():
    stranger = Served(os.getpid(), time.time() - 1e6, "http://127.0.0.1:1")
    server.record_path().parent.mkdir(parents=True, exist_ok=True)
    server.record_path().write_text(json.dumps(asdict(stranger)))
    assert server.running() is None
    assert "No dashboard runs" in run("--stop")
    assert not server.record_path().exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_an_unreadable_record_counts_as_none(content):
    server.record_path().parent.mkdir(parents=True, exist_ok=True)
    server.record_path().write_text(content)
    assert server.running() is None


def test_it_sends_nothing_home_and_listens_on_loopback():
    line = " ".join(server.command("127.0.0.1", 1))
    assert "--browser.gatherUsageStats false" in line
    assert "--server.address 127.0.0.1" in line
    assert "--server.allowedHosts localhost" in line
