"""The guardian: a small process that starts the platform's process, and starts it again when it dies or hangs.

It runs isolated and without site-packages (:func:`argv_of`): it stays at about 13 MiB, and no package that can break
the platform can break it. It does no more than wait, and ask every few seconds whether anybody answers at the
platform's address: one that says nothing for ``HUNG_AFTER_S`` has its stacks written into its log and is ended, so that
it can be started again. Any answer will do, a refusal as well: what is slow, or cannot reach its database, is not hung.

Should the guardian itself be killed, the platform starts another, which takes it over (``adopt``) although it is not
its child.

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
import socket
import sys
import time
from pathlib import Path

from rock.domain.backoff import BackoffPolicy
from rock.domain.intensity import Intensity, IntensityPolicy

RESTARTS = IntensityPolicy(max_failures=8, window_s=120.0)
# The first restart is immediate: clients wait. Then the pauses double, because what fails twice in a row (a database
# that restarts, a full disk) needs time; eight restarts take about a minute. No jitter: nobody else restarts with us.
PAUSES = BackoffPolicy(base_s=0.5, cap_s=16.0)

HUNG_AFTER_S = 30.0
"""Without an answer so long, a platform that served before is ended. Its clients wait about as long."""
HUNG_ENV = "ROCK_HUNG_AFTER_S"
"""Another time than ``HUNG_AFTER_S``; 0 for never, for whoever stops the platform in a debugger."""
_ASK_EVERY_S = 3.0
_ANSWER_WITHIN_S = 5.0
# So many questions at least, however long the guardian itself was kept from asking.
_MISSES = 3
# What is told to abort writes its stacks first.
_ABORT_S = 3.0
_ADOPTED_LOOK_S = 0.2

LOCK = "guardian.lock"
GUARDIAN_ENV = "ROCK_GUARDIAN"
"""Tells the platform's process who guards it: pid and start time."""
RESTARTED_ENV = "ROCK_RESTARTED"
"""Tells it why it was started again; not set at the first start."""

_UNKNOWN = -1000
_ASKED = frozenset({0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM})
_RUN = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from rock.cli._guardian import main; sys.exit(main(sys.argv[1:]))"
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def argv_of(home: Path, command: list[str], *, adopt: int = 0) -> list[str]:
    """The command line of a guardian of ``command`` for the platform of ``home``; ``adopt``: of the process with this
    id, which runs already and whose guardian died."""
    return [sys.executable, "-I", "-S", "-c", _RUN, str(home), str(adopt), *command]


class Hang:
    """Whether the platform has been silent for too long. ``after_s`` 0: it never has."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._misses = 0
        self._heard_at = 0.0

    def heard(self, now: float) -> None:
        self._misses, self._heard_at = 0, now

    def missed(self, now: float) -> bool:
        """A question went unanswered; whether that was one too many."""
        self._misses += 1
        return self._after_s > 0 and self._misses >= _MISSES and now - self._heard_at >= self._after_s


class Guardian:
    def __init__(self, home: Path, command: list[str], adopt: int = 0) -> None:
        self._home = home
        self._command = command
        self._restarts = Intensity(RESTARTS)
        self._child = self._adopted = adopt
        self._adopted_began_s = _started_s(adopt) if adopt else 0.0  # 0: it died before we came to it
        self._stopping = False
        self._hung = ""

    def run(self) -> int:
        """Until the platform ends for good; returns the exit code to end with."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
        why = ""
        while True:
            if not self._adopted:
                self._spawn(why)
            began_at = time.monotonic()
            code = self._until_ended()
            self._adopted = 0
            if self._stopping or code in _ASKED or not (why or self._served()):
                return code if code >= 0 else 128 - code
            lived_s = time.monotonic() - began_at
            why = f"{self._hung or _how(code)} after {lived_s:.0f} s"
            self._hung = ""
            now = time.monotonic()
            if self._restarts.failed(now):
                return self._give_up(why)
            pause_s = PAUSES.ceiling_s(self._restarts.count(now) - 1)
            _say(f"the platform's process {self._child} {why}; restart {self._restarts.count(now)} in {pause_s:g} s")
            if self._stop_asked_within(pause_s):
                return 0

    def _spawn(self, why: str) -> None:
        environ = {**os.environ, GUARDIAN_ENV: f"{os.getpid()} {started_s()}", "PYTHONFAULTHANDLER": "1"}
        if why:
            environ[RESTARTED_ENV] = f"the platform's process {self._child} {why}"
        # A group of its own: Ctrl-C in a terminal reaches the guardian alone, which passes it on once.
        self._child = os.posix_spawn(
            self._command[0], self._command, environ, setpgroup=0, setsigmask=(), setsigdef=_FORWARDED
        )

    def _until_ended(self) -> int:
        began_at = asked_at = time.monotonic()
        hang = Hang(_hung_after_s())
        hang.heard(began_at)
        while True:
            code = self._reap()
            if code is not None:
                return code
            self._hear(_ADOPTED_LOOK_S if self._adopted else _ASK_EVERY_S)
            if time.monotonic() - asked_at >= _ASK_EVERY_S and not self._stopping and not self._hung:
                answered = not self._served() or _answers(str(_read(self._home / "server.json").get("url")))
                asked_at = time.monotonic()
                if answered:
                    hang.heard(asked_at)
                elif hang.missed(asked_at):
                    self._hung = f"answered nobody for {_hung_after_s():g} s and was ended"
                    self._abort()

    def _abort(self) -> None:
        """End what hangs, its stacks first: for whoever wants to know what it hung in."""
        _say(f"the platform's process {self._child} answers nobody and is ended; what it was at stands below")
        with contextlib.suppress(ProcessLookupError):
            for number in (signal.SIGABRT, signal.SIGCONT):  # one that was stopped does nothing before it goes on
                os.kill(self._child, number)
            deadline = time.monotonic() + _ABORT_S
            while _started_s(self._child) and time.monotonic() < deadline:
                time.sleep(_ADOPTED_LOOK_S)
            os.kill(self._child, signal.SIGKILL)

    def _stop_asked_within(self, pause_s: float) -> bool:
        deadline = time.monotonic() + pause_s
        while not self._stopping and (left_s := deadline - time.monotonic()) > 0:
            self._hear(left_s)
        return self._stopping

    def _hear(self, timeout_s: float) -> None:
        got = _number(signal.sigtimedwait((*_FORWARDED, signal.SIGCHLD), timeout_s))
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
                return self._adopted_end()
            if pid == self._child:
                return os.waitstatus_to_exitcode(status)
            if pid == 0:
                return self._adopted_end()

    def _adopted_end(self) -> int | None:
        """What one that is not our child ended with: nobody tells, but one that ends in order removes its file."""
        if not self._adopted or _started_s(self._adopted) == self._adopted_began_s > 0:
            return None
        return _UNKNOWN if self._served() and not self._stopping else 0

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
    if code == _UNKNOWN:
        return "died"
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


def _hung_after_s() -> float:
    """What cannot be understood counts as not said: a guardian must live."""
    try:
        return max(0.0, float(os.environ[HUNG_ENV]))
    except (KeyError, ValueError):
        return HUNG_AFTER_S


def _answers(url: str) -> bool:
    """Whether somebody at the address says anything at all, be it that he wants a key."""
    host, _, port = url.partition("://")[2].rpartition(":")
    within_s = min(_ANSWER_WITHIN_S, max(0.1, _hung_after_s() / _MISSES))
    try:
        with socket.create_connection((host.strip("[]"), int(port)), within_s) as connection:
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return bool(connection.recv(1))
    except (OSError, ValueError):
        return False


def _started_s(pid: int) -> float:
    """As :func:`started_s`; 0 if it does not run."""
    try:
        return started_s(pid)
    except OSError:
        return 0.0


def started_s(pid: int = 0) -> float:
    """When a process (0: this one) started, as seconds since the epoch: what tells it from a later one with its pid.
    Raises OSError if it does not run, which includes one that has ended and whose parent has not looked."""
    with open(f"/proc/{pid or 'self'}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    if fields[0] in b"ZX":
        raise ProcessLookupError(pid)
    ticks = int(fields[19])
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
    return Guardian(home, arguments[2:], int(arguments[1])).run()
