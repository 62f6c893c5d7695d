"""The guardian: starts again what died, not what was ended; gives up on what cannot live; stays small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rock.cli import _guardian

# With short pauses and few restarts.
GUARD = f"""
import sys
sys.path.insert(0, {str(Path(_guardian.__file__).parents[2])!r})
from rock.cli import _guardian
from rock.domain.backoff import BackoffPolicy
from rock.domain.intensity import IntensityPolicy
_guardian.RESTARTS = IntensityPolicy(3, 600.0)
_guardian.PAUSES = BackoffPolicy(0.01, 0.02)
sys.exit(_guardian.main(sys.argv[1:]))
"""
# A platform in short: says that it serves, notes why it was started, and then does as it is told.
CHILD = """
import json, os, pathlib, signal, sys, time
home, then = pathlib.Path(sys.argv[1]), sys.argv[2]
with (home / "starts").open("a") as file:
    file.write(json.dumps([os.getpid(), os.environ.get("ROCK_RESTARTED", "")]) + chr(10))
if then == "refuse":
    sys.exit(7)
(home / "server.json").write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
if then == "crash":
    os.abort()
if then == "end":
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(60)
"""


class Guarded:
    def __init__(self, home: Path, then: str) -> None:
        self.home = home
        argv = [sys.executable, "-I", "-S", "-c", GUARD, str(home), sys.executable, "-c", CHILD, str(home), then]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def starts(self) -> list[tuple[int, str]]:
        path = self.home / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(pid, why) for pid, why in map(json.loads, lines)]

    def serving(self, starts: int) -> int:
        """Wait until the process of the given number serves; its pid."""
        deadline = time.monotonic() + 120
        while True:
            pid = self.starts()[starts - 1][0] if len(self.starts()) >= starts else 0
            if pid and _guardian._read(self.home / "server.json").get("pid") == pid:
                return pid
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Callable[[str], Guarded]]:
    made: list[Guarded] = []

    def start(then: str) -> Guarded:
        made.append(Guarded(tmp_path, then))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        for pid, _ in one.starts():
            if psutil.pid_exists(pid) and str(tmp_path) in psutil.Process(pid).cmdline():
                os.kill(pid, signal.SIGKILL)
        one.process.communicate()


def test_what_is_killed_is_started_again_and_told_why(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    first = guarded.serving(1)
    os.kill(first, signal.SIGKILL)
    second = guarded.serving(2)
    assert second != first
    assert guarded.starts()[0][1] == ""
    assert f"process {first} was killed by SIGKILL" in guarded.starts()[1][1]
    guarded.process.terminate()
    code, said = guarded.ended()
    assert code == 0
    assert "was killed by SIGKILL" in said
    assert "restart 1" in said
    assert not psutil.pid_exists(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_told_to_end_is_passed_on_and_final(guard: Callable[[str], Guarded], number: int) -> None:
    guarded = guard("serve")
    pid = guarded.serving(1)
    guarded.process.send_signal(number)
    code, _ = guarded.ended()
    assert code in {0, 128 + signal.SIGINT}
    assert not psutil.pid_exists(pid)
    assert len(guarded.starts()) == 1


def test_what_ends_in_order_stays_ended(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("end")
    assert guarded.ended()[0] == 0
    assert len(guarded.starts()) == 1


def test_a_first_start_that_fails_is_its_own_to_explain(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("refuse")
    assert guarded.ended() == (7, "")
    assert len(guarded.starts()) == 1


def test_what_cannot_live_is_given_up_with_the_reason(guard: Callable[[str], Guarded], tmp_path: Path) -> None:
    guarded = guard("crash")
    code, said = guarded.ended()
    assert code == 1
    assert len(guarded.starts()) == 1 + 3
    assert "Error: The platform ended 4 times within 600 s" in said
    assert "SIGABRT" in said
    noted = json.loads((tmp_path / "server.json").read_text())["gave_up"]
    assert "not started again" in noted


def test_there_is_one_guardian_of_a_directory(guard: Callable[[str], Guarded], tmp_path: Path) -> None:
    guard("serve").serving(1)
    code, said = Guarded(tmp_path, "serve").ended()
    assert code == 1
    assert "Another platform serves" in said


def test_it_is_small(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    guarded.serving(1)
    rss_mib = psutil.Process(guarded.process.pid).memory_info().rss / (1 << 20)
    print(f"rss_mib={rss_mib:.1f}")
    assert rss_mib < 24
