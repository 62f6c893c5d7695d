"""Programs in the background: their output is fetched piece by piece as it comes, their input given at any time.

Invariants: bytes pass through unchanged; a job lives on when the connection that started it ends, until it is closed or
the sandbox ends; nothing unread takes more memory than ``limit_bytes`` (and one pipe's content): either the oldest
output goes (``keep`` "last": a job that nobody reads runs on) or the program waits for its reader ("all": nothing is
lost); "ended" is said only together with the last byte.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios

from rock.guest.commands import READ_BYTES, drain, readable_now, reason
from rock.guest.errors import GuestError, invalid
from rock.guest.loop import Loop, Writer
from rock.guest.output import Capture
from rock.guest.processes import kill_started

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

MAX_JOBS = 64
_ERROR_BYTES = 1 << 16
_INPUT_BYTES = 4 << 20
"""Input that the program has not taken; past that a write is answered only when it has."""


class Output:
    """A window on a stream of bytes, by absolute offsets."""

    def __init__(self, limit_bytes: int, keep_all: bool) -> None:
        self._data = bytearray()
        self._limit = limit_bytes
        self._keep_all = keep_all
        self.begin = 0
        """Offset of the oldest byte that is still here."""

    @property
    def end(self) -> int:
        return self.begin + len(self._data)

    @property
    def full(self) -> bool:
        return self._keep_all and len(self._data) >= self._limit

    def feed(self, data: bytes) -> None:
        self._data += data
        if not self._keep_all and len(self._data) > self._limit:
            self._forget(len(self._data) - self._limit)

    def take(self, offset: int, size: int) -> Any:
        """(offset of the first byte, bytes). What was read in full is forgotten where nothing may be lost."""
        if self._keep_all and offset > self.begin:
            self._forget(min(offset, self.end) - self.begin)
        begin = max(offset, self.begin)
        return begin, bytes(self._data[begin - self.begin : begin - self.begin + size])

    def _forget(self, count: int) -> None:
        del self._data[:count]
        self.begin += count


class Job:
    """``pty``: (rows, columns) of a terminal of its own, else None. ``merge``: standard error is part of the output."""

    def __init__(
        self, loop: Loop, argv: list[Any], cwd: Any, environ: dict[str, Any], pty: Any, merge: bool, output: Output
    ) -> None:
        self._loop = loop
        self.argv = argv
        self.output = output
        self.exit_code: Any = None
        self.pty = pty is not None
        self._errors = Capture(_ERROR_BYTES)
        self._readers: list[Any] = []
        self._error_pipe: Any = None
        env = dict(os.environ, **environ)
        try:
            if pty is None:
                self._start_on_pipes(argv, cwd, env, merge)
            else:
                self._start_on_terminal(argv, cwd, env, pty)
        except OSError as error:
            raise GuestError("not-found", "cannot run %r: %s" % (argv[0], reason(error))) from error
        self.pid = self._process.pid
        self._writer: Any = Writer(loop, self._in_fd)
        self._reading = False
        self._listen(True)
        loop.on_exit(self.pid, self._exited)

    def _start_on_pipes(self, argv: list[Any], cwd: Any, env: dict[str, Any], merge: bool) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Numbers of our own: Popen closes its objects when it likes.
        self._in_fd, self._out_fd = os.dup(self._process.stdin.fileno()), os.dup(self._process.stdout.fileno())
        self._process.stdin.close()
        self._process.stdout.close()
        os.set_blocking(self._in_fd, False)
        os.set_blocking(self._out_fd, False)
        if not merge:
            self._error_pipe = self._process.stderr
            os.set_blocking(self._error_pipe.fileno(), False)
            self._loop.add_reader(self._error_pipe.fileno(), self._on_error_output)

    def _start_on_terminal(self, argv: list[Any], cwd: Any, env: dict[str, Any], size: Any) -> None:
        ours, theirs = os.openpty()
        _set_size(ours, size)
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=dict({"TERM": "xterm-256color"}, **env),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        self._out_fd, self._in_fd = ours, os.dup(ours)

    # --- output -------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, wait_s: float, answer: Any) -> None:
        """``answer(value)`` as soon as there is something at ``offset``, the job has ended, or ``wait_s`` is over."""
        begin, data = self.output.take(offset, size)
        self._listen(not self.output.full)
        if data or self.exit_code is not None or wait_s <= 0:
            answer(self._value(begin, data))
            return
        reader: list[Any] = [offset, size, answer]
        reader.append(self._loop.call_later(wait_s, lambda: self._give(reader)))
        self._readers.append(reader)

    def _give(self, reader: list[Any]) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            reader[3].cancel()
            reader[2](self._value(*self.output.take(reader[0], reader[1])))

    def _value(self, begin: int, data: bytes) -> dict[str, Any]:
        ended = self.exit_code is not None and begin + len(data) >= self.output.end
        value = {"offset": begin, "data": data, "ended": ended, "exit_code": None}
        if ended:
            value["exit_code"], value["stderr"] = self.exit_code, self._errors.text()
        return value

    def _listen(self, on: bool) -> None:
        if self._out_fd >= 0 and on != self._reading:
            self._reading = on
            self._loop.add_reader(self._out_fd, self._on_output if on else None)

    def _on_output(self) -> None:
        try:
            data = os.read(self._out_fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # a terminal whose last user has gone says EIO
            data = b""
        if not data:
            self._listen(False)
            return
        self.output.feed(data)
        self._listen(not self.output.full)
        for reader in [one for one in self._readers if self.output.end > one[0]]:
            self._give(reader)

    def _on_error_output(self) -> None:
        try:
            data = os.read(self._error_pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._errors.feed(data)
        else:
            self._loop.forget(self._error_pipe.fileno())

    # --- input and the end --------------------------------------------------------------------------------------------

    def write(self, data: bytes, eof: bool, answer: Any) -> None:
        """``answer()`` when most of it is taken; what a program that has ended does not take is no error."""
        if self._writer is not None:
            self._writer.write(data + (b"\x04" if eof and self.pty else b""))
        if eof and not self.pty:
            self._when_below(0, self._close_input)
            answer()
        else:
            self._when_below(_INPUT_BYTES, answer)

    def _when_below(self, limit: int, then: Any) -> None:
        if self._writer is None or self._writer.pending_bytes <= limit:
            then()
        else:
            self._loop.call_later(0.005, lambda: self._when_below(limit, then))

    def _close_input(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._loop.forget(self._in_fd)
            os.close(self._in_fd)

    def send_signal(self, number: int) -> None:
        """To the whole group of what it started, as Ctrl-C in a terminal does."""
        if self.exit_code is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass

    def resize(self, size: Any) -> None:
        if not self.pty:
            raise invalid("the job has no terminal", "Start it with pty.")
        if self._out_fd >= 0:
            _set_size(self._out_fd, size)

    def close(self) -> None:
        if self.exit_code is None:
            kill_started(self.pid)

    def _exited(self, code: int) -> None:
        self._process.returncode = code
        self._close_input()
        self._listen(False)
        try:
            if readable_now(self._out_fd):
                drain(self._out_fd, self.output)
        except OSError:
            pass  # a terminal whose last user has gone
        if self._error_pipe is not None:
            drain(self._error_pipe.fileno(), self._errors)
            self._loop.forget(self._error_pipe.fileno())
            self._error_pipe.close()
        self._loop.forget(self._out_fd)
        os.close(self._out_fd)
        self._out_fd = -1
        self.exit_code = 128 - code if code < 0 else code
        for reader in list(self._readers):
            self._give(reader)


def _take_terminal() -> None:
    """In the child, which has just become the leader of a session: its terminal is that of the session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _set_size(fd: int, size: Any) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def signal_number(name: Any) -> int:
    """Of ``SIGINT``, ``INT`` or 2. Raises GuestError."""
    if isinstance(name, int) and not isinstance(name, bool) and 0 < name < signal.NSIG:
        return name
    word = str(name).upper()
    found = getattr(signal, word if word.startswith("SIG") else "SIG" + word, None)
    if not isinstance(found, int):
        raise invalid("signal is %.40r, expected a name such as SIGINT or a number" % (name,))
    return int(found)
