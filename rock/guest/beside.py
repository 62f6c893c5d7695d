"""Beside environment, shells and single commands: jobs, files, archives, watching, tunnels, pausing, usage.

While the sandbox is paused only what reads nothing from a stopped process is answered; the rest is refused at once
rather than left to time out.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from rock.guest import files, pausing, programs
from rock.guest.connection import Connection, DescriptorConnection
from rock.guest.errors import GuestError, invalid
from rock.guest.fields import data, environment, field, program
from rock.guest.jobs import MAX_JOBS, Job, Output, signal_number
from rock.guest.tunnel import Tunnel

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

LATER = object()
DEFAULT_JOB_BYTES = 1 << 20
MAX_READ_BYTES = 4 << 20
MAX_WAIT_S = 60.0
WATCH_LIMIT = 50000
_WHILE_PAUSED = frozenset(
    ("hello", "ping", "bind", "log", "shutdown", "resume", "pause", "usage", "file.read", "file.list", "shell.close")
    + ("job.list", "job.close", "env.close")
)


class Beside:
    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._jobs: dict[Any, Any] = {}
        self._count = 0
        self._stopped: list[Any] = []
        self.paused = False

    def handlers(self) -> dict[str, Any]:
        return {
            "job.start": self._start,
            "job.read": self._read,
            "job.write": self._write,
            "job.signal": self._signal,
            "job.resize": self._resize,
            "job.list": self._list,
            "job.close": self._close,
            "tar.pack": self._pack,
            "tar.unpack": self._unpack,
            "file.read": self._file_read,
            "file.write": self._file_write,
            "file.list": self._file_list,
            "file.watch": self._watch,
            "tunnel": self._tunnel,
            "pause": self._pause,
            "resume": self._resume,
            "usage": lambda *_: dict(pausing.usage(), paused=self.paused),
        }

    def check(self, op: str) -> None:
        if self.paused and op not in _WHILE_PAUSED:
            raise GuestError("conflict", "the sandbox is paused, so %s cannot be done" % op, "Resume it first.")

    def stop(self) -> None:
        self._go_on()
        for job in self._jobs.values():
            job.close()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _start(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        limit = field(request, "limit_bytes", int, DEFAULT_JOB_BYTES)
        if not 1 <= limit <= (64 << 20):
            raise invalid("limit_bytes is %d, expected 1 to %d" % (limit, 64 << 20))
        keep = field(request, "keep", str, "last")
        if keep not in ("last", "all"):
            raise invalid("keep is %r, expected 'last' or 'all'" % keep)
        pty = _size(request["pty"]) if request.get("pty") is not None else None
        return self._begin(
            program(request),
            Output(limit, keep == "all"),
            cwd=field(request, "cwd", str, "") or None,
            environ=environment(request),
            pty=pty,
            merge=field(request, "merge", bool, True),
        )

    def _begin(self, argv: list[Any], output: Output, **how: Any) -> dict[str, Any]:
        if len(self._jobs) >= MAX_JOBS:
            ended = [name for name, job in self._jobs.items() if job.exit_code is not None]
            if not ended:
                raise GuestError("conflict", "%d jobs are running already" % MAX_JOBS, "Close one first.")
            del self._jobs[ended[0]]
        settings = dict({"cwd": None, "environ": {}, "pty": None, "merge": False}, **how)
        job = Job(self._loop, argv, output=output, **settings)
        self._count += 1
        name = "job-%d" % self._count
        self._jobs[name] = job
        return {"job": name, "pid": job.pid}

    def _job(self, request: dict[str, Any]) -> Any:
        name = field(request, "job", str)
        job = self._jobs.get(name)
        if job is None:
            raise GuestError("not-found", "there is no job %r" % name, "job.list says which there are.")
        return job

    def _read(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        offset, size = field(request, "offset", int, 0), field(request, "size", int, MAX_READ_BYTES)
        wait_s = request.get("wait_s") or 0.0
        if offset < 0 or size < 1 or isinstance(wait_s, bool) or not isinstance(wait_s, (int, float)) or wait_s < 0:
            raise invalid("offset %r, size %r, wait_s %r: expected at least 0, 1 and 0" % (offset, size, wait_s))
        raw = field(request, "raw", bool, False)

        def answer(value: Any) -> None:
            if connection.open:
                connection.send_data(id_json, value, raw)

        self._job(request).read(offset, min(size, MAX_READ_BYTES), min(float(wait_s), MAX_WAIT_S), answer)
        return LATER

    def _write(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        answer = _answering(connection, id_json)
        self._job(request).write(data(request, "data_b64"), field(request, "eof", bool, False), lambda: answer({}))
        return LATER

    def _signal(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._job(request).send_signal(signal_number(request.get("signal", "SIGINT")))
        return {}

    def _resize(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._job(request).resize(_size(request.get("pty")))
        return {}

    def _list(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        rows = [
            {"job": name, "pid": job.pid, "argv": job.argv, "exit_code": job.exit_code, "end": job.output.end}
            for name, job in self._jobs.items()
        ]
        return {"jobs": rows}

    def _close(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        job = self._jobs.pop(field(request, "job", str), None)
        if job is not None:
            job.close()
        return {}

    # --- files --------------------------------------------------------------------------------------------------------

    def _file_read(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        offset, length = field(request, "offset", int, 0), field(request, "length", int, files.MAX_READ_BYTES)
        if offset < 0 or length < 1:
            raise invalid("offset %d and length %d: expected at least 0 and 1" % (offset, length))
        value = files.read(field(request, "path", str), offset, length)
        connection.send_data(id_json, value, field(request, "raw", bool, False))
        return LATER

    def _file_write(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        mode = request.get("mode")
        if mode is not None and (not isinstance(mode, int) or not 0 <= mode <= 0o7777):
            raise invalid("mode is %r, expected a number such as 420 (0o644)" % (mode,))
        append = field(request, "append", bool, False)
        if "data" not in request:
            field(request, "data_b64", str)
        return files.write(field(request, "path", str), data(request, "data_b64"), append, mode)

    def _file_list(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        return files.listing(field(request, "path", str))

    # --- archives and watching ----------------------------------------------------------------------------------------

    def _pack(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        zipped = "1" if field(request, "gzip", bool, False) else "0"
        return self._program(programs.PACK, field(request, "path", str), zipped)

    def _unpack(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        return self._program(programs.UNPACK, field(request, "path", str))

    def _watch(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        every_s = request.get("every_s", 0.1)
        if isinstance(every_s, bool) or not isinstance(every_s, (int, float)) or not every_s >= 0.01:
            raise invalid("every_s is %r, expected at least 0.01" % (every_s,))
        return self._program(programs.WATCH, field(request, "path", str), "%g" % every_s, "%d" % WATCH_LIMIT)

    def _program(self, text: str, *arguments: str) -> dict[str, Any]:
        return self._begin([sys.executable, "-I", "-c", text] + list(arguments), Output(4 << 20, True))

    # --- tunnels ------------------------------------------------------------------------------------------------------

    def _tunnel(self, request: dict[str, Any], connection: DescriptorConnection, id_json: str) -> Any:
        port = field(request, "port", int)
        if not 1 <= port <= 65535:
            raise invalid("port is %d, expected 1 to 65535" % port)
        if connection.fds[0] != connection.fds[1]:
            raise invalid("a tunnel needs a socket of its own; this connection is a pair of pipes")

        def ready(error: Any) -> None:
            if not connection.open:
                if error is None:
                    tunnel.discard()
            elif error is not None:
                connection.send_error(id_json, error)
            else:
                connection.send(id_json, b"{}")
                near = socket.socket(fileno=os.dup(connection.fds[0]))
                near.setblocking(False)
                tunnel.splice(near, connection.detach(), connection.detached)

        tunnel = Tunnel(self._loop, port)
        tunnel.connect(ready)
        return LATER

    # --- pausing ------------------------------------------------------------------------------------------------------

    def _pause(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        if not self.paused:
            self.paused = True
            self._stopped = pausing.stop_all()
        return {"processes": len(self._stopped)}

    def _resume(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._go_on()
        return {}

    def _go_on(self) -> None:
        stopped, self._stopped = self._stopped, []
        pausing.go_on(stopped)
        self.paused = False


def _size(value: Any) -> Any:
    right = isinstance(value, list) and len(value) == 2
    if not right or not all(isinstance(one, int) and 1 <= one <= 10000 for one in value):
        raise invalid("pty is %.80r, expected [rows, columns]" % (value,))
    return value


def _answering(connection: Connection, id_json: str) -> Any:
    def answer(value: Any) -> None:
        if connection.open:
            connection.send(id_json, json.dumps(value).encode())

    return answer
