"""The guardian: a small process that starts the platform's process, and starts it again when it dies.

It runs isolated and without site-packages (:func:`argv_of`): it stays at about 13 MiB, and no package that can break
the platform can break it. It does no more than wait.

Invariants: while a guardian lives it holds ``guardian.lock`` of its state directory, so there is one at most; what ends
in order, or because it was told to, is not started again; the first start's failure is the platform's own to explain
and is passed on; restarts are bounded (OTP's restart intensity), the first at once, then after growing pauses; whoever
reads the log, ``server.json`` or the event ``control.restarted`` learns why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from rock.domain.backoff import BackoffPolicy
from rock.domain.intensity import Intensity, IntensityPolicy

RESTARTS = IntensityPolicy(max_failures=8, window_s=120.0)
# The first restart is immediate: clients wait. Then the pauses double, because what fails twice in a row (a database
# that restarts, a full disk) needs time; eight restarts take about a minute. No jitter: nobody else restarts with us.
PAUSES = BackoffPolicy(base_s=0.5, cap_s=16.0)

LOCK = "guardian.lock"
GUARDIAN_ENV = "ROCK_GUARDIAN"
"""Tells the platform's process who guards it: pid and start time."""
RESTARTED_ENV = "ROCK_RESTARTED"
"""Tells it why it was started again; not set at the first start."""

_ASKED = frozenset({0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM})
_RUN = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from rock.cli._guardian import main; sys.exit(main(sys.argv[1:]))"
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def argv_of(home: Path, command: list[str]) -> list[str]:
    """The command line of a guardian of ``command`` for the platform of ``home``."""
    return [sys.executable, "-I", "-S", "-c", _RUN, str(home), *command]


class Guardian:
    def __init__(self, home: Path, command: list[str]) -> None:
        self._home = home
        self._command = command
        self._restarts = Intensity(RESTARTS)
        self._child = 0
        self._stopping = False

    def run(self) -> int:
        """Until the platform ends for good; returns the exit code to end with."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
        why = ""
        while True:
            self._spawn(why)
            began_at = time.monotonic()
            code = self._until_ended()
            if self._stopping or code in _ASKED or not (why or self._served()):
                return code if code >= 0 else 128 - code
            lived_s = time.monotonic() - began_at
            why = f"{_how(code)} after {lived_s:.0f} s"
            now = time.monotonic()
            if self._restarts.failed(now):
                return self._give_up(why)
            pause_s = PAUSES.ceiling_s(self._restarts.count(now) - 1)
            _say(f"the platform's process {self._child} {why}; restart {self._restarts.count(now)} in {pause_s:g} s")
            if self._stop_asked_within(pause_s):
                return 0

    def _spawn(self, why: str) -> None:
        environ = {**os.environ, GUARDIAN_ENV: f"{os.getpid()} {started_s()}"}
        if why:
            environ[RESTARTED_ENV] = f"the platform's process {self._child} {why}"
        # A group of its own: Ctrl-C in a terminal reaches the guardian alone, which passes it on once.
        self._child = os.posix_spawn(
            self._command[0], self._command, environ, setpgroup=0, setsigmask=(), setsigdef=_FORWARDED
        )

    def _until_ended(self) -> int:
        while True:
            code = self._reap()
            if code is not None:
                return code
            self._hear(None)

    def _stop_asked_within(self, pause_s: float) -> bool:
        deadline = time.monotonic() + pause_s
        while not self._stopping and (left_s := deadline - time.monotonic()) > 0:
            self._hear(left_s)
        return self._stopping

    def _hear(self, timeout_s: float | None) -> None:
        watched = (*_FORWARDED, signal.SIGCHLD)
        got = signal.sigwait(watched) if timeout_s is None else _number(signal.sigtimedwait(watched, timeout_s))
        if got in _FORWARDED:
            self._stopping = True
            with contextlib.suppress(ProcessLookupError):  # it has ended and was reaped: nothing to pass on
                os.kill(self._child, got)

    def _reap(self) -> int | None:
        """The child's exit code if it has ended. As the first process of a container it reaps orphans, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == self._child:
                return os.waitstatus_to_exitcode(status)
            if pid == 0:
                return None

    def _served(self) -> bool:
        """Whether the child came as far as saying where it serves."""
        return _read(self._home / "server.json").get("pid") == self._child

    def _give_up(self, why: str) -> int:
        text = (
            f"The platform ended {RESTARTS.max_failures + 1} times within {RESTARTS.window_s:g} s and is not started "
            f"again; at last it {why}."
        )
        path = self._home / "server.json"
        try:
            path.with_suffix(".new").write_text(json.dumps({**_read(path), "gave_up": text}))
            path.with_suffix(".new").replace(path)
        except OSError as error:
            _say(f"could not note it in {path}: {error}")
        _tell(f"Error: {text} Its own last words stand above; mend that, then: rock up -d")
        return 1


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(info: signal.struct_siginfo | None) -> int:
    return info.si_signo if info is not None else 0


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _say(text: str) -> None:
    _tell(f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING rock.guardian {text}")


def _tell(line: str) -> None:
    """To the log, whose end may be a terminal or disk that is gone: that must not end the guardian."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def started_s() -> float:
    """When this process started, as seconds since the epoch: what tells it from a later one with its pid."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as file:
        boot_s = next(int(line.split()[1]) for line in file if line.startswith(b"btime"))
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")


def lock(home: Path) -> bool:
    """Become the guardian of ``home``; False if there is one. Freed by the kernel when this process ends."""
    handle = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    os.truncate(handle, 0)
    os.write(handle, json.dumps({"pid": os.getpid(), "process_started_s": started_s()}).encode())
    return True


def main(arguments: list[str]) -> int:
    home = Path(arguments[0])
    try:
        if not lock(home):
            _tell(f"Error: Another platform serves {home}. `rock ps` shows it.")
            return 1
    except OSError as error:
        _tell(f"Error: {home}: {error.strerror}. Free some space or name another with --home.")
        return 1
    return Guardian(home, arguments[1:]).run()
