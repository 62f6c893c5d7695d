"""One server per state directory, and nothing that a dead one left ever blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rock.cli import _state
from rock.domain.errors import Conflict, StorageError
from rock.sdk.home import read_server, server_path

HOLD = """
import sys, pathlib
from rock.cli import _state
home = pathlib.Path(sys.argv[1])
with _state.serving(home):
    _state.publish(home, "http://127.0.0.1:1")
    print("serving", flush=True)
    sys.stdin.read()
"""


def holder(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    return process


def test_a_second_server_is_refused_while_the_first_lives(rock_home: Path) -> None:
    with holder(rock_home) as process:
        assert _state.lock_is_held(rock_home)
        running = _state.running_server(rock_home)
        assert running is not None
        assert running.pid == process.pid
        with pytest.raises(Conflict, match="Another platform"), _state.serving(rock_home):
            pass
        process.communicate("")
    assert not _state.lock_is_held(rock_home)
    assert read_server(rock_home) is None


def test_a_killed_server_blocks_nobody(rock_home: Path) -> None:
    with holder(rock_home) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert server_path(rock_home).exists()
    assert _state.running_server(rock_home) is None
    with _state.serving(rock_home):
        assert read_server(rock_home) is None
        _state.publish(rock_home, "http://127.0.0.1:2")
        running = _state.running_server(rock_home)
        assert running is not None
        assert (running.pid, running.url) == (os.getpid(), "http://127.0.0.1:2")


def test_a_recycled_pid_is_not_taken_for_the_server(rock_home: Path) -> None:
    with _state.serving(rock_home):
        _state.publish(rock_home, "http://127.0.0.1:2")
        content = json.loads(server_path(rock_home).read_text())
    server_path(rock_home).write_text(json.dumps({**content, "process_started_s": content["process_started_s"] - 60}))
    assert _state.running_server(rock_home) is None


def test_a_home_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="home"):
        _state.make_home(file / "home")


def test_looking_at_a_home_that_does_not_exist_makes_nothing(tmp_path: Path) -> None:
    assert not _state.lock_is_held(tmp_path / "none")
    assert _state.running_server(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []
