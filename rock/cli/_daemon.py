"""A platform in the background: started apart from the terminal, waited for, and explained when it does not come up.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rock.cli._errors import storage_error
from rock.cli._settings import Settings
from rock.cli._state import log_path, make_home
from rock.domain.errors import DeadlineExceeded, PlatformUnavailable, RockError
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

    Raises: the error with which it ended, as far as its log tells; DeadlineExceeded (platform) when it neither
    answered nor ended in time.
    """
    home = settings.home
    make_home(home)
    log = log_path(home)
    argv = [sys.executable, "-m", "rock.cli", "up", *settings.arguments()]
    environ = {**os.environ, "ROCK_HOME": str(home), "ROCK_DATABASE": settings.database, "PYTHONUNBUFFERED": "1"}
    environ.pop("ROCK_URL", None)
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
        _end(process)
        raise


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
        if server is not None and server.pid == process.pid and answers(server.url):
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
    if found:
        return PlatformUnavailable(f"The platform did not start: {reason.strip()}", hint=f"(Its log: {log})")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return PlatformUnavailable(f"The platform {how} while it started.", hint=f"Its log is {log}.", cause=text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop what was started: it removes its sandboxes by itself if it has the time."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop(server: ServerFile, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """End the server's process, in order if it can; returns False if it had to be killed."""
    if not server.alive:
        return True
    try:
        process = psutil.Process(server.pid)
        process.terminate()
        if _ended(server, timeout_s):
            return True
        process.kill()
        _ended(server, _KILL_TIMEOUT_S)
        return False
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied as error:
        raise PlatformUnavailable(
            f"Process {server.pid} belongs to another user.", hint="Run `rock down` as the user that ran `rock up`."
        ) from error


def _ended(server: ServerFile, within_s: float) -> bool:
    """Not psutil's own wait: it takes for living what has ended and whose parent does not look, as in a container whose
    first process reaps nobody."""
    deadline = time.monotonic() + within_s
    while server.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True
