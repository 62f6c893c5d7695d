"""The guardian: starts again what died or hangs, not what was ended; gives up on what cannot live; stays small."""

from __future__ import annotations

import contextlib
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
from hypothesis import given
from hypothesis import strategies as st

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
import http.server, json, os, pathlib, signal, socket, sys, threading, time
home, then = pathlib.Path(sys.argv[1]), sys.argv[2]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)
    def log_message(self, *_):
        pass
if then == "hang":
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
else:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
with (home / "starts").open("a") as file:
    file.write(json.dumps([os.getpid(), os.environ.get("ROCK_RESTARTED", "")]) + chr(10))
if then == "refuse":
    sys.exit(7)
(home / "server.json").write_text(json.dumps({"pid": os.getpid(), "url": f"http://127.0.0.1:{port}"}))
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
        self.process = self._guard(then, 0, {})

    def _guard(self, then: str, adopt: int, environ: dict[str, str]) -> subprocess.Popen[str]:
        child = [sys.executable, "-c", CHILD, str(self.home), then]
        argv = [sys.executable, "-I", "-S", "-c", GUARD, str(self.home), str(adopt), *child]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ})

    def succeed(self, adopt: int, environ: dict[str, str] | None = None) -> None:
        """The guardian is killed, and another takes the process over."""
        self.process.kill()
        self.process.wait()  # not for the end of its output, which what it started has inherited
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process = self._guard("serve", adopt, environ or {})
        deadline = time.monotonic() + 120
        while json.loads((self.home / _guardian.LOCK).read_text() or "{}").get("pid") != self.process.pid:
            assert time.monotonic() < deadline
            time.sleep(0.01)

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
            with contextlib.suppress(psutil.Error):  # an orphan that nobody reaped, as in a container, is none
                if str(tmp_path) in psutil.Process(pid).cmdline():
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


def test_what_answers_nobody_is_ended_with_its_stacks_in_the_log_and_started_again(
    guard: Callable[[str], Guarded],
) -> None:
    guarded = guard("hang")
    first = guarded.serving(1)
    guarded.succeed(first, {_guardian.HUNG_ENV: "1"})
    second = guarded.serving(2)
    assert second != first
    assert f"process {first} answered nobody for 1 s and was ended" in guarded.starts()[1][1]
    guarded.process.terminate()
    assert "answers nobody and is ended" in guarded.ended()[1]


def test_what_answers_at_all_is_left_alone(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    url = f"http://127.0.0.1:{_port(guarded.home, guarded.serving(1))}"
    assert _guardian._answers(url)
    assert not _guardian._answers("http://127.0.0.1:1")
    assert not _guardian._answers("nonsense")


def _port(home: Path, pid: int) -> int:
    served = _guardian._read(home / "server.json")
    assert served["pid"] == pid
    return int(str(served["url"]).rpartition(":")[2])


def test_another_guardian_takes_over_what_the_dead_one_started(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    first = guarded.serving(1)
    guarded.succeed(first)
    assert len(guarded.starts()) == 1
    os.kill(first, signal.SIGKILL)
    second = guarded.serving(2)
    assert f"process {first} died" in guarded.starts()[1][1]
    guarded.succeed(second)
    guarded.process.terminate()  # passed on, though it is not its child
    assert guarded.ended()[0] == 0
    assert _guardian._started_s(second) == 0.0
    assert len(guarded.starts()) == 2


def test_what_died_before_its_new_guardian_came_is_started_again(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    first = guarded.serving(1)
    guarded.process.kill()
    guarded.process.wait()
    os.kill(first, signal.SIGKILL)
    guarded.succeed(first)
    guarded.serving(2)
    assert f"process {first} died" in guarded.starts()[1][1]


def test_what_an_adopted_platform_ended_in_order_stays_ended(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    pid = guarded.serving(1)
    guarded.succeed(pid)
    (guarded.home / "server.json").unlink()  # as the platform does itself
    os.kill(pid, signal.SIGTERM)
    assert guarded.ended()[0] == 0
    assert len(guarded.starts()) == 1


@given(st.floats(0.1, 100), st.lists(st.tuples(st.floats(0, 50), st.booleans()), max_size=30))
def test_only_a_row_of_unanswered_questions_over_the_whole_time_is_a_hang(
    after_s: float, asked: list[tuple[float, bool]]
) -> None:
    hang, never, now, heard_at, misses = _guardian.Hang(after_s), _guardian.Hang(0.0), 0.0, 0.0, 0
    hang.heard(now)
    for passed_s, answered in asked:
        now += passed_s
        if answered:
            hang.heard(now)
            heard_at, misses = now, 0
        else:
            misses += 1
            assert hang.missed(now) is (misses >= 3 and now - heard_at >= after_s)
            assert not never.missed(now)


def test_it_is_small(guard: Callable[[str], Guarded]) -> None:
    guarded = guard("serve")
    guarded.serving(1)
    rss_mib = psutil.Process(guarded.process.pid).memory_info().rss / (1 << 20)
    print(f"rss_mib={rss_mib:.1f}")
    assert rss_mib < 24
