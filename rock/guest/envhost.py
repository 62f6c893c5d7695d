"""The environment in a process of its own: the guest outlives whatever the environment does to itself.

The guest forks (no second interpreter start) and talks to the child over a socket pair: requests as JSON lines; answers
as one kind byte, then JSON, then a newline, so that the guest can pass the JSON on without parsing it. What the
environment prints goes to the log, never into the protocol.
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import os
import signal
import socket
import sys
import time
import traceback

from rock.guest.errors import GuestError
from rock.guest.loop import Loop, Writer
from rock.guest.processes import is_stopped, kill_started

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

READY, VALUE, ENDED, ERROR = b"r", b"v", b"e", b"x"
_CAUSE_LINES = 20
_CLOSE_GRACE_S = 2.0
# A stopped process will not answer. Not at once: whoever stopped it may let it go on in the same breath.
_STOPPED_FOR_S = 0.4


class EnvProcess:
    """The guest's side. ``state``: none, loading, ready, closing or dead. One call at a time.

    ``on_death(GuestError, told)`` is called when the process is gone without having been asked to; ``told``: a request
    was under way, and whoever waited for it has been told already. ``was_ready``: it had come as far as being usable.
    """

    def __init__(self, loop: Loop, entry: str, python_path: list[Any], log: Any, on_death: Any) -> None:
        self._loop = loop
        self._entry = entry
        self._python_path = python_path
        self._log = log
        self._on_death = on_death
        self._sock: Any = None
        self._writer: Any = None
        self._output_fd = -1
        self._buffer = bytearray()
        self._done: Any = None
        self._asked_at = 0.0
        self._oom_kills = 0
        self._stopped_at: Any = None
        self._on_stopped: Any = None
        self._close_timer: Any = None
        self.pid = 0
        self.was_ready = False
        self.state = "none"
        self.death: Any = None

    @property
    def busy_s(self) -> float:
        return time.monotonic() - self._asked_at if self._done is not None else 0.0

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        out_r, out_w = os.pipe()
        self._oom_kills = oom_kills()
        pid = os.fork()
        if pid == 0:
            _child(theirs.fileno(), out_w, self._entry, self._python_path)
        theirs.close()
        os.close(out_w)
        ours.setblocking(False)
        os.set_blocking(out_r, False)
        self._sock, self._output_fd, self.pid = ours, out_r, pid
        self._writer = Writer(self._loop, ours.fileno())
        self._buffer.clear()
        self.state, self.death, self.was_ready = "loading", None, False
        self._stopped_at = None
        self._loop.add_reader(ours.fileno(), self._readable)
        self._loop.add_reader(out_r, self._output)
        self._loop.on_exit(pid, lambda code: self._exited(pid, code))

    def call(self, request: dict[str, Any], done: Any) -> None:
        """``done(kind, json_bytes)`` with kind VALUE, ENDED (the episode is over) or ERROR."""
        self._done = done
        self._asked_at = time.monotonic()
        self._writer.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")

    def check(self) -> None:
        """End a process that was stopped by a signal, as one that died; to be called again and again."""
        if self.state not in ("loading", "ready") or not is_stopped(self.pid):
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
        elif time.monotonic() - self._stopped_at >= _STOPPED_FOR_S:
            kill_started(self.pid)

    def stop(self, graceful: bool, then: Any = None) -> None:
        """End the process: let the environment close first if ``graceful``, for at most 2 s."""
        if self.state not in ("loading", "ready"):
            if then is not None:
                then()
            return
        pid = self.pid
        self.state = "closing"
        self._finish_pending(GuestError("sandbox-lost", "the environment was closed"))
        self._on_stopped = then
        if graceful:
            self._sock.shutdown(socket.SHUT_WR)
            self._close_timer = self._loop.call_later(_CLOSE_GRACE_S, lambda: kill_started(pid))
        else:
            kill_started(pid)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._sock.fileno())
            return
        seen = len(self._buffer)
        self._buffer += data
        end = self._buffer.find(b"\n", seen)
        while end >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._on_line(line[:1], line[1:])
            end = self._buffer.find(b"\n")

    def _on_line(self, kind: bytes, payload: bytes) -> None:
        if kind == READY:
            if self.state == "loading":
                self.state, self.was_ready = "ready", True
            return
        done, self._done = self._done, None
        if done is not None:
            done(kind, payload)

    def _output(self) -> None:
        try:
            data = os.read(self._output_fd, 1 << 16)
        except BlockingIOError:
            return
        if data:
            self._log.feed(data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if self._output_fd >= 0:
            self._loop.forget(self._output_fd)
            os.close(self._output_fd)
            self._output_fd = -1

    def _exited(self, pid: int, code: int) -> None:
        self._readable()  # an answer written just before the end still counts
        if self._output_fd >= 0:
            self._output()
            self._close_output()
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        kill_started(pid, include_root=False)  # what it started, in its session
        if self.state == "closing":
            self.state = "none"
            if self._close_timer is not None:
                self._close_timer.cancel()
            callback, self._on_stopped = self._on_stopped, None
            if callback is not None:
                callback()
            return
        self.state = "dead"
        how = "exited by signal %d" % -code if code < 0 else "exited with code %d" % code
        if code == -signal.SIGKILL and oom_kills() > self._oom_kills:
            how += " (out of memory: the sandbox reached its limit)"
        if self._stopped_at is not None:
            how += " (after something had stopped it)"
        tail = "\n".join(self._log.lines(_CAUSE_LINES))
        self.death = GuestError(
            "sandbox-lost",
            "the environment's process is gone",
            "The episode is void; env.reset starts the environment anew.",
            ("env process %s\n%s" % (how, tail)).strip(),
        )
        self._on_death(self.death, self._finish_pending(self.death))

    def _finish_pending(self, error: GuestError) -> bool:
        done, self._done = self._done, None
        if done is not None:
            done(ERROR, json.dumps(error.frame()).encode())
        return done is not None


def oom_kills() -> int:
    """How often the kernel killed for memory in this sandbox's cgroup; 0 where that cannot be read."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0


# --- the environment's side -------------------------------------------------------------------------------------------


def _child(sock_fd: int, out_fd: int, entry: str, python_path: list[Any]) -> None:
    """Never returns, and never lets an exception reach the guest's own code."""
    code = 1
    try:
        _become_child(sock_fd, out_fd)
        code = EnvServer(entry, python_path, socket.socket(fileno=3)).run()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else (0 if exit_.code is None else 1)
    except BaseException:  # noqa: BLE001 - the process ends here; its output is the guest's evidence
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


def _become_child(sock_fd: int, out_fd: int) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    # Out of the way of 0-3 first: the pipe's own number may be one of them.
    high_sock, high_out, high_null = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (sock_fd, out_fd, null))
    os.dup2(high_null, 0)
    os.dup2(high_out, 1)
    os.dup2(high_out, 2)
    os.dup2(high_sock, 3, inheritable=False)
    os.closerange(4, _max_fd())
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)


def _max_fd() -> int:
    try:
        return max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    except (OSError, ValueError):
        return 4096


class EnvServer:
    """Makes the one instance of the environment and calls it, one request after the other."""

    def __init__(self, entry: str, python_path: list[Any], sock: Any) -> None:
        self._entry = entry
        self._python_path = python_path
        self._sock = sock
        self._env: Any = None

    def run(self) -> int:
        sys.path[:0] = [path for path in self._python_path if path not in sys.path]
        failure = None
        try:
            self._env = load_entry(self._entry)()
        except Exception as error:  # noqa: BLE001 - whatever it raises is the environment's failure, told at the reset
            traceback.print_exc()
            failure = error_payload("the environment could not be loaded from %s" % self._entry, error)
        gc.freeze()
        self._sock.sendall(READY + b"\n")
        for line in self._sock.makefile("rb"):
            kind, payload = (ERROR, failure) if failure else answer(self._env, json.loads(line))
            self._sock.sendall(kind + payload + b"\n")
        if self._env is not None and hasattr(self._env, "close"):
            self._env.close()
        return 0


def load_entry(entry: str) -> Any:
    """The class that ``module:Class`` names."""
    module, _, name = entry.partition(":")
    found = __import__(module, fromlist=[name])
    for part in name.split("."):
        found = getattr(found, part)
    return found


def answer(env: Any, request: dict[str, Any]) -> tuple[Any, ...]:
    """(kind, JSON) of one request to an environment. Catches all that the environment may raise but SystemExit."""
    op = request["op"]
    try:
        if op == "env.step":
            observation, reward, terminated, truncated, info = env.step(request["action"])
            value = {
                "observation": observation,
                "reward": _finite(reward),
                "terminated": bool(terminated),
                "truncated": bool(truncated),
                "info": info,
            }
            return ENDED if terminated or truncated else VALUE, dumps(value)
        if op == "env.reset":
            observation, info = env.reset(request["task"], request["seed"], request["options"])
            return VALUE, dumps({"observation": observation, "info": info})
        if op == "env.restore":
            env.restore(request["task"], request["seed"], request["options"], request["state"])
            return VALUE, dumps({})
        if op == "env.checkpoint":
            return VALUE, dumps({"state": env.checkpoint()})
        if op == "env.hooks":
            hooks = [callable(getattr(env, name, None)) for name in ("checkpoint", "restore")]
            return VALUE, dumps({"snapshots": all(hooks)})
        return VALUE, dumps({"value": env.call(request["method"], request["args"])})
    except Exception as error:  # noqa: BLE001 - rule 1: whatever it raises makes the episode void, never a reward
        unknown = _unknown_name(op, request, error)
        if unknown:
            return ERROR, json.dumps(GuestError("not-found", unknown).frame()).encode()
        traceback.print_exc()
        return ERROR, error_payload("the environment raised %s in %s" % (type(error).__name__, op), error)


def _unknown_name(op: str, request: dict[str, Any], error: Exception) -> str:
    """Resets raise KeyError for an unknown task, calls LookupError for an unknown method: the caller's mistake."""
    if op == "env.reset" and isinstance(error, KeyError) and request["task"] in str(error.args):
        return "the environment has no task %r" % request["task"]
    if op == "env.call" and type(error) is LookupError and request["method"] in str(error.args):
        return "the environment has no method %r" % request["method"]
    return ""


def error_payload(detail: str, error: Exception) -> bytes:
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    failure = GuestError("environment-error", detail, "The episode is void.", "\n".join(lines[-_CAUSE_LINES:]))
    return json.dumps(failure.frame()).encode()


def dumps(value: Any) -> bytes:
    """Strict JSON: no NaN, no infinity. Raises ValueError or TypeError, which then is the environment's failure."""
    return json.dumps(value, default=_plain, allow_nan=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy or torch become plain ones, without importing either."""
    for name in ("tolist", "item"):
        if hasattr(value, name):
            return getattr(value, name)()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    raise TypeError("a %s is not JSON-serialisable" % type(value).__name__)


def _finite(reward: Any) -> float:
    number = float(reward)
    if not math.isfinite(number):
        raise ValueError("the reward is %r, expected a finite number" % number)
    return number
