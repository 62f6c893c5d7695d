"""A platform in the background: started apart from the terminal, waited for, and explained when it does not come up.

What is started is its guardian (:mod:`rock.cli._guardian`), which starts the platform's own process.
Invariants: when `start` returns, the platform answers; when it raises, or is interrupted, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import psutil

from rock.cli import _guardian, _state
from rock.cli._errors import storage_error
from rock.cli._settings import Settings
from rock.cli._state import log_path, make_home
from rock.domain.errors import Conflict, DeadlineExceeded, PlatformUnavailable, RockError, Unauthorized
from rock.sdk.home import ServerFile, read_server

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.05
_KILL_TIMEOUT_S = 5.0
_LOG_LINES = 15
# A log of this size is put aside when the platform starts again.
_LONGEST_LOG_BYTES = 16 << 20


def start(settings: Settings, *, timeout_s: float = START_TIMEOUT_S) -> ServerFile:
    """Run ``rock up`` with the settings in the background and wait until it answers.

    Raises: the error with which it ended, as far as its log tells; Conflict (somebody else was quicker);
    DeadlineExceeded (platform) when it neither answered nor ended in time.
    """
    home = settings.home
    make_home(home)
    log = log_path(home)
    argv = _guardian.argv_of(home, _server_argv(settings))
    environ = _environ(settings)
    try:
        if log.exists() and log.stat().st_size > _LONGEST_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            begin = output.tell()
            with _interrupts_wait() as interrupts:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environ
                )
    except OSError as error:
        raise storage_error(error) from error
    try:
        if interrupts:
            raise KeyboardInterrupt
        return _wait(process, home, log, begin, timeout_s)
    except BaseException:
        with _interrupts_wait():  # the second Ctrl-C must not stop the clearing up after the first
            _end(process, home)
        raise


def running_soon(home: Path, *, timeout_s: float = START_TIMEOUT_S) -> ServerFile | None:
    """The server of ``home``; one that somebody is just starting, or starting again, is waited for. None if there is
    none. Raises DeadlineExceeded (platform)."""
    deadline = time.monotonic() + timeout_s
    while _state.lock_is_held(home):
        running = _state.running_server(home)
        if running is not None:
            return running
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"Somebody starts the platform of {home} and has not come to an end within {timeout_s:g} s.",
                hint=f"Its log is {log_path(home)}; `rock down` ends it.",
            )
        time.sleep(_LOOK_EVERY_S)
    return None


def become_guardian(settings: Settings) -> NoReturn:
    """Go on as the guardian of the platform in the foreground: this process, without what it has loaded."""
    make_home(settings.home)
    argv = _guardian.argv_of(settings.home, _server_argv(settings))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, _environ(settings))


def start_guardian(settings: Settings) -> subprocess.Popen[bytes]:
    """Another guardian of this process, which serves ``settings``, in place of one that died. Raises StorageError."""
    argv = _guardian.argv_of(settings.home, _server_argv(settings), adopt=os.getpid())
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, env=_environ(settings))
    except OSError as error:
        raise storage_error(error) from error


def _server_argv(settings: Settings) -> list[str]:
    return [sys.executable, "-m", "rock.cli", "up", *settings.arguments()]


def _environ(settings: Settings) -> dict[str, str]:
    environ = {
        **os.environ,
        "ROCK_HOME": str(settings.home),
        "ROCK_DATABASE": settings.database,
        "PYTHONUNBUFFERED": "1",
    }
    environ.pop("ROCK_URL", None)
    return environ


@contextmanager
def _interrupts_wait() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising: within Popen it would lose a process that has started already."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield []
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(process: subprocess.Popen[bytes], home: Path, log: Path, begin: int, timeout_s: float) -> ServerFile:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _explain(process.returncode, log, begin)
        server = read_server(home)
        if server is not None and server.guardian_pid == process.pid and answers(server.url):
            process.returncode = 0  # it outlives us: not ours to wait for
            return server
        time.sleep(_LOOK_EVERY_S)
    raise DeadlineExceeded(
        f"The platform was not ready within {timeout_s:g} s.", hint=f"Its log is {log}.", cause=_tail(log, begin)
    )


def answers(url: str) -> bool:
    """Whether a platform says that it is there."""
    import asyncio

    from rock.sdk import Rock

    async def look() -> bool:
        try:
            async with Rock(url, retry_s=0, timeout_s=5.0) as rock:
                await rock.health()
        except Unauthorized:  # it answers, and wants a key that we need not have
            return True
        except RockError:
            return False
        return True

    return asyncio.run(look())


def _tail(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return "".join(line.decode(errors="replace") for line in deque(file, maxlen=_LOG_LINES))


def _explain(code: int, log: Path, begin: int) -> RockError:
    """The reason the process gave, else its last lines."""
    text = _tail(log, begin)
    _, found, reason = text.rpartition("Error: ")
    if "Another platform serves" in reason:
        return Conflict(reason.strip())
    if found:
        return PlatformUnavailable(f"The platform did not start: {reason.strip()}", hint=f"(Its log: {log})")
    code = 128 - code if code > 128 else code  # the guardian ends as the platform did
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return PlatformUnavailable(f"The platform {how} while it started.", hint=f"Its log is {log}.", cause=text)


def _end(process: subprocess.Popen[bytes], home: Path) -> None:
    """Stop what was started: it removes its sandboxes by itself if it has the time."""
    if process.poll() is None:
        stop([ServerFile(process.pid, "", datetime.now(UTC)), *_state.processes(home)])
    process.wait()


def stop(processes: Sequence[ServerFile], *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """End a platform's processes, the first of which passes it on to the others, in order if it can; returns False if
    they had to be killed, which is done from the first on, so that none starts another again."""
    try:
        living = [psutil.Process(one.pid) for one in processes if one.alive]
        if not living:
            return True
        living[0].terminate()
        if _ended(processes, timeout_s):
            return True
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _ended(processes, _KILL_TIMEOUT_S)
        return False
    except psutil.NoSuchProcess:
        return _ended(processes, timeout_s)
    except psutil.AccessDenied as error:
        raise PlatformUnavailable(
            f"Process {processes[0].pid} belongs to another user.",
            hint="Run `rock down` as the user that ran `rock up`.",
        ) from error


def _ended(processes: Sequence[ServerFile], within_s: float) -> bool:
    """Not psutil's own wait: it takes for living what has ended and whose parent does not look, as in a container whose
    first process reaps nobody."""
    deadline = time.monotonic() + within_s
    while any(one.alive for one in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True
