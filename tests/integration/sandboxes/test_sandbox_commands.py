"""`rock sandbox …` on a running sandbox, as a person or a script uses it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROCK = [sys.executable, "-m", "rock.cli"]

pytestmark = pytest.mark.bwrap


class Command:
    def __init__(self, url: str) -> None:
        self.environ = {k: v for k, v in os.environ.items() if k not in {"ROCK_HOME", "ROCK_KEY"}} | {"ROCK_URL": url}
        self.id = self("sandbox", "create", "--ttl", "600").strip()

    def __call__(self, *argv: str, stdin: str = "", code: int = 0) -> str:
        done = subprocess.run(
            [*ROCK, *argv], env=self.environ, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def rock(on_bubblewrap: str) -> Iterator[Command]:
    command = Command(on_bubblewrap)
    yield command
    command("sandbox", "rm", command.id)


def test_files_are_copied_in_and_out(rock: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("content")
    rock("sandbox", "cp", str(tmp_path / "in"), f"{rock.id}:/tmp/there")
    assert rock("exec", rock.id, "cat", "/tmp/there/a") == "content"
    rock("sandbox", "cp", f"{rock.id}:/tmp/there/a", str(tmp_path))
    assert (tmp_path / "a").read_text() == "content"
    assert "exactly one of both" in rock("sandbox", "cp", "a", "b", code=2)


def test_a_paused_sandbox_says_so_and_is_resumed(rock: Command) -> None:
    assert "stopped" in rock("sandbox", "pause", rock.id)
    assert "(paused)" in rock("sandbox", "stats", rock.id)
    assert "paused" in rock("exec", rock.id, "true", code=1)
    rock("sandbox", "resume", rock.id)
    rock("exec", rock.id, "true")


def test_copies_outlive_the_command_that_made_them(rock: Command) -> None:
    rock("exec", rock.id, "sh", "-c", "echo kept > /tmp/file")
    copies = rock("sandbox", "fork", rock.id, "-n", "2").split()
    assert len(copies) == 2
    for copy in copies:
        assert rock("exec", copy, "cat", "/tmp/file") == "kept\n"
    rock("sandbox", "rm", *copies)


def test_input_that_is_piped_into_a_terminal_ends_it(rock: Command) -> None:
    said = rock("sandbox", "attach", rock.id, stdin="cd /usr; echo in''side; exit 6\n", code=6)
    assert "inside" in said


def test_a_person_at_a_terminal_types_in_the_sandbox_and_gets_its_terminal_back(rock: Command) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*ROCK, "sandbox", "attach", rock.id, "python3", "-q"],
        env=rock.environ | {"COLUMNS": "90", "LINES": "20"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    try:
        said = _read_until(ours, b">>> ")
        os.write(ours, b"import os; os.get_terminal_size().columns * 10\r")
        said = _read_until(ours, b"900")
        os.write(ours, b"while True: pass\r\r")
        os.write(ours, b"\x03")  # reaches the program there, and does not end the command here
        said = _read_until(ours, b"KeyboardInterrupt")
        os.write(ours, b"raise SystemExit(9)\r")
        assert process.wait(30) == 9, said
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(fd: int, wanted: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + 30
    while wanted not in found:
        assert time.monotonic() < deadline, found
        if select.select([fd], [], [], 0.2)[0]:
            found += os.read(fd, 65536)
    return found


def test_a_port_is_forwarded_until_the_command_ends(rock: Command) -> None:
    server = "cd /tmp; echo served > page; setsid python3 -m http.server 8124 --bind 127.0.0.1 >/dev/null 2>&1 &"
    rock("exec", rock.id, "sh", "-c", server)
    argv = [*ROCK, "sandbox", "forward", rock.id, "8124"]
    with subprocess.Popen(argv, env=rock.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/page", timeout=10) as answer:
                    assert answer.read() == b"served\n"
                break
            except OSError:  # it has not begun to listen
                assert time.monotonic() < deadline
        process.kill()


def test_a_sandbox_that_nobody_leased_or_knows_is_refused(rock: Command) -> None:
    assert "sb-unknown" in rock("sandbox", "stats", "sb-unknown", code=1)
