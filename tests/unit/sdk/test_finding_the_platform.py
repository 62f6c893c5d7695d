"""Which platform a client talks to, and that dead servers are never believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from rock.domain.errors import PlatformUnavailable
from rock.sdk import Rock, RockSync
from rock.sdk.home import DEFAULT_URL, read_server, resolve_url, rock_home, server_path


def write(home: Path, **fields: object) -> None:
    content = {"pid": os.getpid(), "url": "http://127.0.0.1:4711", "started_at": datetime.now(UTC).isoformat()}
    server_path(home).write_text(json.dumps({**content, **fields}))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_the_caller_passes_comes_first(rock_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(rock_home)
    monkeypatch.setenv("ROCK_URL", "http://10.0.0.1:1")
    assert resolve_url("http://10.0.0.2:2/") == "http://10.0.0.2:2"
    assert resolve_url() == "http://10.0.0.1:1"


def test_a_living_server_of_the_home_is_found(rock_home: Path) -> None:
    write(rock_home)
    assert resolve_url() == "http://127.0.0.1:4711"


def test_who_names_no_directory_gets_the_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ROCK_HOME", "ROCK_URL"):
        monkeypatch.delenv(name, raising=False)
    assert resolve_url() == Rock().url == DEFAULT_URL
    (tmp_path / ".rock").mkdir()
    write(tmp_path / ".rock", pid=dead_pid())
    assert resolve_url() == DEFAULT_URL


def test_who_names_a_directory_gets_its_platform_or_none(rock_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for client in (Rock, RockSync):
        with pytest.raises(PlatformUnavailable, match=f"No platform runs from {rock_home}"):
            client()
    assert Rock("http://127.0.0.1:1").url == "http://127.0.0.1:1"
    monkeypatch.setenv("ROCK_URL", "http://127.0.0.1:2")
    assert Rock().url == "http://127.0.0.1:2"


def test_a_dead_server_is_not_believed(rock_home: Path) -> None:
    write(rock_home, pid=dead_pid())
    with pytest.raises(PlatformUnavailable, match="rock up -d"):
        resolve_url()


def test_a_recycled_pid_is_not_believed(rock_home: Path) -> None:
    started = psutil.Process().create_time()
    write(rock_home, process_started_s=started - 100)
    server = read_server(rock_home)
    assert server is not None
    assert not server.alive
    write(rock_home, process_started_s=started)
    server = read_server(rock_home)
    assert server is not None
    assert server.alive


def test_a_recycled_pid_is_recognised_without_the_start_time_too(rock_home: Path) -> None:
    write(rock_home, started_at=(datetime.now(UTC) - timedelta(days=300)).isoformat())
    server = read_server(rock_home)
    assert server is not None
    assert not server.alive


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "url": "u", "started_at": 5}', "\x00"])
def test_a_torn_file_counts_as_none(rock_home: Path, content: str) -> None:
    server_path(rock_home).write_text(content)
    assert read_server(rock_home) is None
    with pytest.raises(PlatformUnavailable):
        resolve_url()


def test_home_is_the_argument_then_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCK_HOME", str(tmp_path))
    assert rock_home() == tmp_path
    assert rock_home(tmp_path / "other") == tmp_path / "other"
