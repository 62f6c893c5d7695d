"""Persistent shells: directory, variables and functions stay from one command to the next."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from rock.guest.commands import READ_BYTES, TIMED_OUT_CODE, drain, reason
from rock.guest.errors import GuestError, invalid
from rock.guest.loop import Loop, Writer
from rock.guest.output import Capture
from rock.guest.processes import children_of, kill_started, now_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_RECOVERY_S = 2.0


def find_shell() -> list[Any]:
    for path in ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"):
        if os.access(path, os.X_OK):
            return [path, "--norc", "--noprofile"]
    if os.access("/bin/sh", os.X_OK):
        return ["/bin/sh"]
    raise GuestError("not-found", "the sandbox has no /bin/bash and no /bin/sh", "Use exec, or an image with a shell.")


def quote(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


class Shell:
    """A shell that lives from command to command: directory, variables and functions stay.

    Three pipes: commands in, output out, exit codes out (descriptor 9). A command runs as ``eval`` with /dev/null as
    its input and without descriptor 9. When its time is up, what it started is killed and the shell is told, by a trap,
    to replace itself: it goes on in the same directory with the exported variables. A shell that does not even do that
    is killed: ``shell_lost`` in the answer says so.
    """

    def __init__(self, loop: Loop, shell_id: str, cwd: Any, environ: dict[str, Any]) -> None:
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
                cwd=cwd,
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
        self._run: Any = None
        self.exit_code: Any = None
        loop.add_reader(self._output_fd, self._on_output)
        loop.add_reader(self._status_fd, self._on_status)
        loop.on_exit(self._process.pid, self._exited)
        self._prepare()

    @property
    def busy(self) -> bool:
        return self._run is not None

    def run(self, command: str, timeout_s: float, limit: int, done: Any) -> None:
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

    def interrupt(self) -> None:
        """End the command under way as if its time were up; without one, nothing."""
        if self._run is not None and not self._run.timed_out:
            self._run.timer.cancel()
            self._expire()

    def close(self) -> None:
        if self.exit_code is None:
            kill_started(self._process.pid)

    def _prepare(self) -> None:
        """First words to a new shell. It opens our pipes by path, so nothing hangs on its descriptors' numbers."""
        control, output, status = ("/proc/%d/fd/%d" % (os.getpid(), fd) for fd in self._ours[:3])
        again = "exec %s <%s >%s 2>&1 9>%s" % (" ".join(self._argv), control, output, status)
        self._writer.write(("exec 9>%s; trap %s USR1; printf 'new\\n' >&9\n" % (status, quote(again))).encode())

    def _expire(self) -> None:
        run = self._run
        if run is None:
            return
        if not run.timed_out:
            run.timed_out = True
            run.give_up_at = time.monotonic() + _RECOVERY_S
            try:
                os.kill(self._process.pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass
            self._prepare()
        if time.monotonic() >= run.give_up_at:
            self.close()  # the answer follows from _exited
            return
        kill_started(self._process.pid, run.since_ticks, False, run.spared)
        run.timer = self._loop.call_later(0.02, self._expire)

    def _on_output(self) -> None:
        try:
            data = os.read(self._output_fd, READ_BYTES)
        except BlockingIOError:
            return
        if self._run is not None:  # between commands only a background job prints; nobody asked for it
            self._run.capture.feed(data)

    def _on_status(self) -> None:
        try:
            data = os.read(self._status_fd, 4096)
        except BlockingIOError:
            return
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            if self._run is None:
                continue
            if self._run.timed_out:
                if line == b"new":
                    self._finish(TIMED_OUT_CODE)
            elif line.startswith(b"done "):
                self._finish(int(line[5:]))

    def _finish(self, code: int) -> None:
        run, self._run = self._run, None
        drain(self._output_fd, run.capture)
        run.finish(code, self.exit_code is not None)

    def _exited(self, code: int) -> None:
        self._process.returncode = code
        self.exit_code = 128 - code if code < 0 else code
        kill_started(self._process.pid, include_root=False)
        if self._run is not None:
            self._finish(TIMED_OUT_CODE if self._run.timed_out else self.exit_code)
        self._writer.close()
        for fd in self._ours:
            self._loop.forget(fd)
            os.close(fd)


class _Run:
    """The one command a shell is running."""

    def __init__(self, loop: Loop, timeout_s: float, limit: int, done: Any, expire: Any, spared: set[Any]) -> None:
        self.capture = Capture(limit)
        self.spared = spared
        self.timed_out = False
        self.give_up_at = 0.0
        self.since_ticks = now_ticks()
        self._began = time.monotonic()
        self._done = done
        self.timer = loop.call_later(timeout_s, expire)

    def finish(self, code: int, shell_lost: bool) -> None:
        self.timer.cancel()
        self._done(
            {
                "exit_code": code,
                "output": self.capture.text(),
                "truncated": self.capture.truncated,
                "timed_out": self.timed_out,
                "shell_lost": shell_lost,
                "duration_s": round(time.monotonic() - self._began, 6),
            }
        )
