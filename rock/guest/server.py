"""Connections and operations. One instance is one guest; everything runs in the loop's one thread."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from rock.guest.beside import LATER, Beside
from rock.guest.commands import DEFAULT_OUTPUT_BYTES, Exec
from rock.guest.connection import MAX_DATA_BYTES, Connection, DescriptorConnection
from rock.guest.envhost import ENDED, ERROR
from rock.guest.episode import CACHED, JOIN, Episode, Fence
from rock.guest.errors import GuestError, invalid
from rock.guest.fields import data, environment, field, program, timeout
from rock.guest.keeper import Keeper
from rock.guest.loop import Loop
from rock.guest.orphan import from_outside
from rock.guest.output import Log
from rock.guest.shell import Shell
from rock.guest.steps import StepTimes

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

PROTOCOL = 1


class Server:
    """``env``: an EnvProcess or what looks like one, or None. ``on_shutdown`` is called after everything has ended."""

    def __init__(self, loop: Loop, log: Log, on_shutdown: Any) -> None:
        self.loop = loop
        self.env: Any = None
        self.log = log
        self.fence = Fence()
        self.episode = Episode()
        self._on_shutdown = on_shutdown
        self.switch: Any = None  # DeadMansSwitch
        self.steps = StepTimes()
        self._step_at: Any = None
        self._keeper = Keeper()
        self._lost: Any = None  # GuestError: the process that the episode was played in is gone
        self._waiting: list[Any] = []
        self._shells: dict[Any, Any] = {}
        self._shell_count = 0
        self._connections: set[Any] = set()
        self._listener: Any = None
        self._beside = Beside(loop)
        self._handlers = {
            "hello": self._hello,
            "ping": self._ping,
            "bind": self._bind,
            "env.reset": self._env_reset,
            "env.step": self._env_step,
            "env.restore": self._env_restore,
            "env.call": self._env_call,
            "env.hooks": self._env_unnumbered,
            "env.checkpoint": self._env_unnumbered,
            "env.close": self._env_close,
            "shell.open": self._shell_open,
            "shell.run": self._shell_run,
            "shell.interrupt": self._shell_interrupt,
            "shell.close": self._shell_close,
            "exec": self._exec,
            "log": self._log,
            "shutdown": self._shutdown,
        }
        self._handlers.update(self._beside.handlers())

    # --- connections --------------------------------------------------------------------------------------------------

    def listen(self, path: str) -> None:
        """Bind under another name and rename: whoever sees the socket can connect to it."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        temporary = path + "~"
        if os.path.exists(temporary):
            os.unlink(temporary)
        listener.bind(temporary)
        os.chmod(temporary, 0o600)
        listener.listen(128)
        listener.setblocking(False)
        os.rename(temporary, path)
        self._listener = listener
        self.loop.add_reader(listener.fileno(), self._accept)

    def serve_pair(self, read_fd: int, write_fd: int, on_close: Any) -> DescriptorConnection:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        return DescriptorConnection(self, read_fd, write_fd, on_close)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)

        switch = self.switch if from_outside(sock) else None

        def closed() -> None:
            self._connections.discard(connection)
            sock.close()
            if switch is not None:
                switch.disconnected()

        connection = DescriptorConnection(self, sock.fileno(), sock.fileno(), closed)
        self._connections.add(connection)
        if switch is not None:
            switch.connected()

    def handle(self, connection: Connection, line: bytes) -> None:
        id_json = "null"
        try:
            request = json.loads(line)
            id_json = json.dumps(request.get("id"))
        except (ValueError, AttributeError) as error:
            connection.send_error(id_json, invalid("a frame is not a JSON object: %s" % error))
            return
        request.pop("data", None)  # only what comes behind the line
        size = request.get("data_bytes")
        if size is None:
            self._do(request, connection, id_json)
        elif isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_DATA_BYTES:
            connection.send_error("null", invalid("data_bytes is %.40r, expected 0 to %d" % (size, MAX_DATA_BYTES)))
            connection.close()  # where the next line begins is anybody's guess
        elif size:
            connection.expect(size, lambda raw: self._do(dict(request, data=raw), connection, id_json))
        else:
            self._do(dict(request, data=b""), connection, id_json)

    def _do(self, request: dict[str, Any], connection: Connection, id_json: str) -> None:
        try:
            op: Any = request.get("op")
            handler = self._handlers.get(op)
            if handler is None:
                raise invalid("unknown operation %r" % (op,))
            self.fence.check(request.get("epoch"))
            self._beside.check(request["op"])
            value = handler(request, connection, id_json)
            if value is not LATER:
                connection.send(id_json, json.dumps(value, separators=(",", ":")).encode())
        except GuestError as error:
            connection.send_error(id_json, error)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def env_state(self) -> str:
        if self.env is None or self.env.state == "closing":
            return "none"
        return str(self.env.state)

    def env_died(self, error: GuestError, told: bool) -> None:
        """Start it anew, so that the next reset finds it loaded. The episode it died in is void, whatever is asked."""
        self.log.say(error.cause.splitlines()[0])
        if not told:
            self.episode.fail(error)
        if self.episode.last_seq >= 0:
            self._lost = error
        if self._keeper.restarts(time.monotonic(), error.cause, self.env.was_ready):
            self.env.start()

    def stop(self, then: Any) -> None:
        """End everything the guest started, the environment in order, then ``then()``."""
        self._beside.stop()
        for shell in self._shells.values():
            shell.close()
        for connection in self._connections:
            for running in connection.execs:
                running.kill()
        if self._listener is not None:
            self.loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self.env is not None:
            self.env.stop(True, then)
        else:
            then()

    def set_listening(self, on: bool) -> None:
        """Off: as if the process were stopped; what arrives waits unread."""
        if self._listener is not None:
            self.loop.add_reader(self._listener.fileno(), self._accept if on else None)
        for connection in self._connections:
            connection.set_listening(on)

    def disconnect_all(self) -> None:
        for connection in list(self._connections):
            connection.close()

    def _hello(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "env": self.env_state,
            "epoch": self.fence.epoch,
        }

    def _ping(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        busy_s = 0.0
        if self.env is not None:
            if not self._beside.paused:  # it is stopped, and no worse for it
                self.env.check()
            busy_s = self.env.busy_s
        value: dict[str, Any] = {"t": time.monotonic(), "env": self.env_state, "busy_s": round(busy_s, 6)}
        if self.steps.count:
            value["steps"] = self.steps.summary()
        if self._keeper.deaths:
            value["env_deaths"] = self._keeper.deaths
            value["env_cause"] = self._keeper.cause
        return value

    def _bind(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        epoch = request.get("epoch")
        if epoch is None:
            raise invalid("bind without an epoch")
        self.fence.bind(epoch)
        return {}

    def _log(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        return {"lines": self.log.lines(field(request, "lines", int, 100))}

    def _shutdown(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        def ended() -> None:
            connection.send(id_json, b"{}")
            self._on_shutdown()

        self.stop(ended)
        return LATER

    # --- the environment ----------------------------------------------------------------------------------------------

    def _env_reset(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        call = {
            "op": "env.reset",
            "task": field(request, "task", str, ""),
            "seed": field(request, "seed", int, 0),
            "options": field(request, "options", dict, {}) or {},
        }
        return self._numbered(request, call, connection, id_json)

    def _env_restore(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        call = {
            "op": "env.restore",
            "task": field(request, "task", str, ""),
            "seed": field(request, "seed", int, 0),
            "options": field(request, "options", dict, {}) or {},
            "state": request.get("state"),
        }
        return self._numbered(request, call, connection, id_json)

    def _env_step(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        if "action" not in request:
            raise invalid("env.step without an action")
        return self._numbered(request, {"op": "env.step", "action": request["action"]}, connection, id_json)

    def _numbered(self, request: dict[str, Any], call: dict[str, Any], connection: Connection, id_json: str) -> Any:
        env = self._require_env()
        op = call["op"]
        verdict = self.episode.admit(field(request, "seq", int), call, op == "env.reset", op == "env.restore")
        if verdict == CACHED:
            connection.send(id_json, self.episode.answer)
            return LATER
        self._waiting.append((connection, id_json))
        if verdict == JOIN:
            return LATER
        if env.busy_s:
            self.episode.fail(GuestError("conflict", "an env.call is still running"))
            self._waiting.clear()
            raise self.episode.failure
        if env.state in ("none", "dead"):
            env.start()
        if op != "env.step":
            self._lost = None
        self._step_at = time.monotonic() if op == "env.step" else None
        env.call(call, self._settle)
        return LATER

    def _settle(self, kind: bytes, payload: bytes) -> None:
        waiting, self._waiting = self._waiting, []
        if kind == ERROR:
            frame = json.loads(payload)
            code = frame["type"].rpartition(":")[2]
            self.episode.fail(GuestError(code, frame["detail"], frame["hint"], frame["cause"]))
            for connection, id_json in waiting:
                connection.send_error_json(id_json, payload)
            return
        if self._step_at is not None:
            self.steps.add(time.monotonic() - self._step_at)
        self.episode.settle(payload, kind == ENDED)
        for connection, id_json in waiting:
            connection.send(id_json, payload)

    def _env_call(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        call = {"op": "env.call", "method": field(request, "method", str), "args": field(request, "args", dict, {})}
        return self._beside_the_episode(call, connection, id_json)

    def _env_unnumbered(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        return self._beside_the_episode({"op": request["op"]}, connection, id_json)

    def _beside_the_episode(self, call: dict[str, Any], connection: Connection, id_json: str) -> Any:
        env = self._require_env()
        if env.busy_s:
            raise GuestError("conflict", "the environment is busy with another request", "One at a time.")
        if self._lost is not None or env.state == "dead":
            raise self._lost or env.death  # also when it has been started anew: that one knows nothing of the episode
        if env.state == "none":
            env.start()

        def done(kind: bytes, payload: bytes) -> None:
            if kind == ERROR:
                connection.send_error_json(id_json, payload)
                if env.state == "dead":
                    self.episode.fail(env.death)
            else:
                connection.send(id_json, payload)

        env.call(call, done)
        return LATER

    def _env_close(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        def closed() -> None:
            self.episode.restart()
            self._lost = None
            connection.send(id_json, b"{}")

        self._require_env().stop(True, closed)
        return LATER

    def _require_env(self) -> Any:
        if self.env is None:
            raise invalid("this sandbox hosts no environment", "Lease one by the environment's name.")
        if self.env.state == "closing":
            raise GuestError("conflict", "the environment is being closed", "Wait for the answer to env.close.")
        return self.env

    # --- commands ----------------------------------------------------------------------------------------------------

    def _shell_open(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._shell_count += 1
        shell_id = "sh-%d" % self._shell_count
        cwd = field(request, "cwd", str, "") or None
        self._shells[shell_id] = Shell(self.loop, shell_id, cwd, environment(request))
        return {"shell": shell_id}

    def _shell_run(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._shell(request).run(
            field(request, "command", str),
            timeout(request),
            field(request, "max_output_bytes", int, DEFAULT_OUTPUT_BYTES),
            lambda value: connection.send(id_json, json.dumps(value).encode()),
        )
        return LATER

    def _shell_interrupt(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._shell(request).interrupt()
        return {}

    def _shell_close(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        self._shell(request).close()
        del self._shells[request["shell"]]
        return {}

    def _shell(self, request: dict[str, Any]) -> Shell:
        shell_id = field(request, "shell", str)
        shell: Shell | None = self._shells.get(shell_id)
        if shell is None:
            raise GuestError("not-found", "no shell %r" % shell_id, "Open one: shell.open.")
        return shell

    def _exec(self, request: dict[str, Any], connection: Connection, id_json: str) -> Any:
        def done(value: dict[str, Any]) -> None:
            connection.execs.discard(running)
            connection.send(id_json, json.dumps(value).encode())

        running = Exec(
            self.loop,
            program(request),
            field(request, "cwd", str, "") or None,
            environment(request),
            data(request, "stdin_b64"),
            timeout(request),
            field(request, "max_output_bytes", int, DEFAULT_OUTPUT_BYTES),
            done,
        )
        connection.execs.add(running)
        return LATER
