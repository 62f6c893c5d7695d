"""Programs run in the sandbox: ``exec``, and what it shares with the persistent shells of ``shell.py``.

Invariants: a command's standard input is never ours; output is read as it comes, so nothing can fill a pipe and hang;
a command ends for us when *it* ends, whatever it left in the background; after a time-out nothing that it started runs.
"""

from __future__ import annotations

import array
import fcntl
import os
import subprocess
import termios
import time

from rock.guest.errors import GuestError
from rock.guest.loop import Loop
from rock.guest.output import Capture
from rock.guest.processes import kill_started

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_OUTPUT_BYTES = 1 << 20
TIMED_OUT_CODE = 124
"""Exit code of a command that was killed for its time, as GNU timeout has it."""
READ_BYTES = 1 << 18


def readable_now(fd: int) -> int:
    """How many bytes wait in the pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def drain(fd: int, capture: Any) -> None:
    """Read what is in the pipe at this moment, and not what a background process adds to it meanwhile."""
    left = readable_now(fd)
    while left > 0:
        try:
            data = os.read(fd, min(left, READ_BYTES))
        except BlockingIOError:
            return
        if not data:
            return
        left -= len(data)
        capture.feed(data)


def reason(error: OSError) -> str:
    return "%s: %s" % (error.filename, error.strerror) if error.filename else str(error.strerror)


class Exec:
    """One program from start to ``done(value)``."""

    def __init__(
        self,
        loop: Loop,
        argv: list[Any],
        cwd: Any,
        environ: dict[str, Any],
        stdin: bytes,
        timeout_s: float,
        limit: int,
        done: Any,
    ) -> None:
        self._loop = loop
        self._done = done
        self._timed_out = False
        self._began = time.monotonic()
        self._captures: dict[Any, Any] = {}
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=dict(os.environ, **environ),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise GuestError("not-found", "cannot run %r: %s" % (argv[0], reason(error))) from error
        self.pid = self._process.pid
        self._pipes = [pipe for pipe in (self._process.stdout, self._process.stderr) if pipe is not None]
        for fd in [pipe.fileno() for pipe in self._pipes]:
            os.set_blocking(fd, False)
            self._captures[fd] = Capture(limit)
            loop.add_reader(fd, lambda fd=fd: self._read(fd))
        if stdin:
            _Feed(loop, self._process.stdin, stdin)
        self._timer = loop.call_later(timeout_s, self._expire)
        loop.on_exit(self.pid, self._exited)

    def kill(self) -> None:
        kill_started(self.pid)

    def _expire(self) -> None:
        self._timed_out = True
        self.kill()

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._captures[fd].feed(data)
        else:
            self._loop.forget(fd)

    def _exited(self, code: int) -> None:
        self._process.returncode = code
        self._timer.cancel()
        if self._timed_out:
            kill_started(self.pid, include_root=False)
        for fd, capture in self._captures.items():
            drain(fd, capture)
            self._loop.forget(fd)
        for pipe in self._pipes:
            pipe.close()
        stdout, stderr = self._captures.values()
        self._done(
            {
                "exit_code": TIMED_OUT_CODE if self._timed_out else (128 - code if code < 0 else code),
                "stdout": stdout.text(),
                "stderr": stderr.text(),
                "truncated": stdout.truncated or stderr.truncated,
                "timed_out": self._timed_out,
                "duration_s": round(time.monotonic() - self._began, 6),
            }
        )


class _Feed:
    """Gives a program its standard input and then closes it; a program that does not read it all is no error."""

    def __init__(self, loop: Loop, pipe: Any, data: bytes) -> None:
        self._loop, self._pipe, self._data = loop, pipe, memoryview(data)
        os.set_blocking(pipe.fileno(), False)
        loop.set_writer(pipe.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._data = self._data[os.write(self._pipe.fileno(), self._data[: 1 << 16]) :]
        except BlockingIOError:
            return
        except OSError:
            self._data = self._data[:0]
        if not self._data:
            self._loop.forget(self._pipe.fileno())
            self._pipe.close()
