"""Programs run in the sandbox: ``exec`` (one program) and persistent shells.

Invariants: a command's standard input is never ours; output is read as it comes, so nothing can fill a pipe and hang;
a command ends for us when *it* ends, whatever it left in the background; after a time-out nothing that it started runs.
"""

import array
import fcntl
import os
import signal
import subprocess
import termios
import time

from rock.guest.errors import GuestError, invalid
from rock.guest.loop import Loop, Writer
from rock.guest.output import Capture
from rock.guest.processes import children_of, kill_started, now_ticks

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_OUTPUT_BYTES = 1 << 20
TIMED_OUT_CODE = 124
"""Exit code of a command that was killed for its time, as GNU timeout has it."""
_RECOVERY_S = 2.0
_READ_BYTES = 1 << 18


def readable_now(fd):
    # type: (int) -> int
    """How many bytes wait in the pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def drain(fd, capture):
    # type: (int, Capture) -> None
    """Read what is in the pipe at this moment, and not what a background process adds to it meanwhile."""
    left = readable_now(fd)
    while left > 0:
        data = os.read(fd, min(left, _READ_BYTES))
        if not data:
            return
        left -= len(data)
        capture.feed(data)


def reason(error):
    # type: (OSError) -> str
    return "%s: %s" % (error.filename, error.strerror) if error.filename else str(error.strerror)


class Exec:
    """One program from start to ``done(value)``."""

    def __init__(self, loop, argv, cwd, environ, stdin, timeout_s, limit, done):
        # type: (Loop, list, object, dict, bytes, float, int, object) -> None
        self._loop = loop
        self._done = done
        self._timed_out = False
        self._began = time.monotonic()
        self._captures = {}  # type: dict
        try:
            self._process = subprocess.Popen(
                argv,
                cwd=cwd,  # type: ignore[arg-type]
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
        for pipe in (self._process.stdout, self._process.stderr):
            fd = pipe.fileno()  # type: ignore[union-attr]
            os.set_blocking(fd, False)
            self._captures[fd] = Capture(limit)
            loop.add_reader(fd, lambda fd=fd: self._read(fd))
        if stdin:
            _Feed(loop, self._process.stdin, stdin)
        self._timer = loop.call_later(timeout_s, self._expire)
        loop.on_exit(self.pid, self._exited)

    def kill(self):
        # type: () -> None
        kill_started(self.pid)

    def _expire(self):
        # type: () -> None
        self._timed_out = True
        self.kill()

    def _read(self, fd):
        # type: (int) -> None
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._captures[fd].feed(data)
        else:
            self._loop.forget(fd)

    def _exited(self, code):
        # type: (int) -> None
        self._process.returncode = code
        self._timer.cancel()
        if self._timed_out:
            kill_started(self.pid, include_root=False)
        texts, truncated = [], False
        for pipe in (self._process.stdout, self._process.stderr):
            fd = pipe.fileno()  # type: ignore[union-attr]
            capture = self._captures[fd]
            try:
                drain(fd, capture)
            except BlockingIOError:
                pass
            self._loop.forget(fd)
            pipe.close()  # type: ignore[union-attr]
            texts.append(capture.text())
            truncated = truncated or capture.truncated
        self._done(  # type: ignore[operator]
            {
                "exit_code": TIMED_OUT_CODE if self._timed_out else (128 - code if code < 0 else code),
                "stdout": texts[0],
                "stderr": texts[1],
                "truncated": truncated,
                "timed_out": self._timed_out,
                "duration_s": round(time.monotonic() - self._began, 6),
            }
        )


class _Feed:
    """Gives a program its standard input and then closes it; a program that does not read it all is no error."""

    def __init__(self, loop, pipe, data):
        # type: (Loop, object, bytes) -> None
        self._loop, self._pipe, self._data = loop, pipe, memoryview(data)
        os.set_blocking(pipe.fileno(), False)  # type: ignore[attr-defined]
        loop.set_writer(pipe.fileno(), self._write)  # type: ignore[attr-defined]

    def _write(self):
        # type: () -> None
        try:
            self._data = self._data[os.write(self._pipe.fileno(), self._data[: 1 << 16]) :]  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError:
            self._data = self._data[:0]
        if not self._data:
            self._loop.forget(self._pipe.fileno())  # type: ignore[attr-defined]
            self._pipe.close()  # type: ignore[attr-defined]


def find_shell():
    # type: () -> list
    for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"):
        if os.access(path, os.X_OK):
            return [path, "--norc", "--noprofile"]
    if os.access("/bin/sh", os.X_OK):
        return ["/bin/sh"]
    raise GuestError("not-found", "the sandbox has no /bin/bash and no /bin/sh", "Use exec, or an image with a shell.")


def quote(text):
    # type: (str) -> str
    return "'" + text.replace("'", "'\"'\"'") + "'"


class Shell:
    """A shell that lives from command to command: directory, variables and functions stay.

    Three pipes: commands in, output out, exit codes out (descriptor 9). A command runs as ``eval`` with /dev/null as
    its input and without descriptor 9. When its time is up, what it started is killed and the shell is told, by a trap,
    to replace itself: it goes on in the same directory with the exported variables. A shell that does not even do that
    is killed: ``shell_lost`` in the answer says so.
    """

    def __init__(self, loop, shell_id, cwd, environ):
        # type: (Loop, str, object, dict) -> None
        self._loop = loop
        self.id = shell_id
        self._argv = find_shell()
        # A syntax error inside eval ends a shell that is not bash, unless `command` takes eval's special rank away.
        self._eval = "eval" if "bash" in self._argv[0] else "command eval"
        control_r, self._control_fd = os.pipe()
        self._output_fd, output_w = os.pipe()
        self._status_fd, status_w = os.pipe()
        # We keep the writing ends as well: without one the pipes would report their end before the shell opens them.
        self._ours = [self._control_fd, self._output_fd, self._status_fd, output_w, status_w]
        try:
            self._process = subprocess.Popen(
                self._argv,
                cwd=cwd,  # type: ignore[arg-type]
                env=dict(os.environ, **environ),
                stdin=control_r,
                stdout=output_w,
                stderr=output_w,
                start_new_session=True,
            )
        except OSError as error:
            for fd in self._ours:
                os.close(fd)
            raise GuestError("not-found", "cannot open a shell: %s" % reason(error)) from error
        finally:
            os.close(control_r)
        for fd in self._ours[:3]:
            os.set_blocking(fd, False)
        self._writer = Writer(loop, self._control_fd)
        self._status = b""
        self._run = None  # type: object
        self.exit_code = None  # type: object
        loop.add_reader(self._output_fd, self._on_output)
        loop.add_reader(self._status_fd, self._on_status)
        loop.on_exit(self._process.pid, self._exited)
        self._prepare()

    @property
    def busy(self):
        # type: () -> bool
        return self._run is not None

    def run(self, command, timeout_s, limit, done):
        # type: (str, float, int, object) -> None
        if self.exit_code is not None:
            raise GuestError(
                "not-found", "shell %s has ended with code %s" % (self.id, self.exit_code), "Open another: shell.open."
            )
        if self._run is not None:
            raise GuestError("conflict", "shell %s is still running a command" % self.id, "Open a second shell.")
        if "\0" in command:
            raise invalid("the command contains a zero byte")
        self._run = _Run(self._loop, timeout_s, limit, done, self._expire, children_of(self._process.pid))
        line = "%s %s </dev/null 9>&-; printf 'done %%s\\n' \"$?\" >&9\n" % (self._eval, quote("\n" + command + "\n"))
        self._writer.write(line.encode("utf-8", "surrogateescape"))

    def close(self):
        # type: () -> None
        if self.exit_code is None:
            kill_started(self._process.pid)

    def _prepare(self):
        # type: () -> None
        """First words to a new shell. It opens our pipes by path, so nothing hangs on its descriptors' numbers."""
        control, output, status = ("/proc/%d/fd/%d" % (os.getpid(), fd) for fd in self._ours[:3])
        again = "exec %s <%s >%s 2>&1 9>%s" % (" ".join(self._argv), control, output, status)
        self._writer.write(("exec 9>%s; trap %s USR1; printf 'new\\n' >&9\n" % (status, quote(again))).encode())

    def _expire(self):
        # type: () -> None
        run = self._run
        if run is None:
            return
        if not run.timed_out:  # type: ignore[attr-defined]
            run.timed_out = True  # type: ignore[attr-defined]
            run.give_up_at = time.monotonic() + _RECOVERY_S  # type: ignore[attr-defined]
            try:
                os.kill(self._process.pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass
            self._prepare()
        if time.monotonic() >= run.give_up_at:  # type: ignore[attr-defined]
            self.close()  # the answer follows from _exited
            return
        kill_started(self._process.pid, run.since_ticks, False, run.spared)  # type: ignore[attr-defined]
        run.timer = self._loop.call_later(0.02, self._expire)  # type: ignore[attr-defined]

    def _on_output(self):
        # type: () -> None
        try:
            data = os.read(self._output_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if self._run is not None:  # between commands only a background job prints; nobody asked for it
            self._run.capture.feed(data)  # type: ignore[attr-defined]

    def _on_status(self):
        # type: () -> None
        try:
            data = os.read(self._status_fd, 4096)
        except BlockingIOError:
            return
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            if self._run is None:
                continue
            if self._run.timed_out:  # type: ignore[attr-defined]
                if line == b"new":
                    self._finish(TIMED_OUT_CODE)
            elif line.startswith(b"done "):
                self._finish(int(line[5:]))

    def _finish(self, code):
        # type: (int) -> None
        run, self._run = self._run, None
        drain_quietly(self._output_fd, run.capture)  # type: ignore[attr-defined]
        run.finish(code, self.exit_code is not None)  # type: ignore[attr-defined]

    def _exited(self, code):
        # type: (int) -> None
        self._process.returncode = code
        self.exit_code = 128 - code if code < 0 else code
        kill_started(self._process.pid, include_root=False)
        if self._run is not None:
            self._finish(TIMED_OUT_CODE if self._run.timed_out else self.exit_code)  # type: ignore[attr-defined]
        self._writer.close()
        for fd in self._ours:
            self._loop.forget(fd)
            os.close(fd)


def drain_quietly(fd, capture):
    # type: (int, Capture) -> None
    try:
        drain(fd, capture)
    except BlockingIOError:
        pass


class _Run:
    """The one command a shell is running."""

    def __init__(self, loop, timeout_s, limit, done, expire, spared):
        # type: (Loop, float, int, object, object, set) -> None
        self.capture = Capture(limit)
        self.spared = spared
        self.timed_out = False
        self.give_up_at = 0.0
        self.since_ticks = now_ticks()
        self._began = time.monotonic()
        self._done = done
        self.timer = loop.call_later(timeout_s, expire)

    def finish(self, code, shell_lost):
        # type: (int, bool) -> None
        self.timer.cancel()
        self._done(  # type: ignore[operator]
            {
                "exit_code": code,
                "output": self.capture.text(),
                "truncated": self.capture.truncated,
                "timed_out": self.timed_out,
                "shell_lost": shell_lost,
                "duration_s": round(time.monotonic() - self._began, 6),
            }
        )
