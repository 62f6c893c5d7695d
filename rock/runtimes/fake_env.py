"""The environment of a fake sandbox: a toy, in the sandboxes' one thread, with faults on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rock.domain.detection import Seen
from rock.guest import envhost
from rock.guest.errors import GuestError

if TYPE_CHECKING:
    from rock.runtimes.fake import FakeSandbox


class ToyEnv:
    """The default environment: counts its steps. ``task`` may be a number: the steps an episode has (default 10).

    Actions: ``"end"`` wins at once, ``"raise"`` raises; anything else counts.
    """

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if task == "unknown":
            raise KeyError(task)
        self.length = int(task) if task.isdigit() else 10
        self.count = 0
        return f"task {task} seed {seed} step 0", {"length": self.length}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == "raise":
            raise ValueError("the toy environment was told to raise")
        self.count += 1
        over = action == "end" or self.count >= self.length
        info = {"success": True} if over else {}
        return f"step {self.count}: {action}", float(over), over, False, info

    def call(self, method: str, args: dict[str, Any]) -> Any:
        if method != "state":
            raise LookupError(method)
        return {"count": self.count}

    def close(self) -> None:
        pass


class DiskEnv(ToyEnv):
    """The toy, whose state lies in its sandbox's files: a snapshot keeps it."""

    disk: dict[str, Any]

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.disk.clear()
        answer = super().reset(task, seed, options)
        self.disk["count"] = 0
        return answer

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        answer = super().step(action)
        self.disk["count"] = self.count
        return answer

    def checkpoint(self) -> Any:
        return {"length": self.length, "count": self.count}

    def restore(self, task: str, seed: int, options: dict[str, Any], state: Any) -> None:
        self.length, self.count = state["length"], self.disk["count"]


class InlineEnv:
    """Looks like ``EnvProcess``, in the loop's own thread, with faults."""

    def __init__(self, sandbox: FakeSandbox, factory: Callable[[], Any]) -> None:
        self._sandbox = sandbox
        self._factory = factory
        self._env: Any = None
        self._steps = 0
        self._done: Any = None
        self._asked_at = 0.0
        self.state = "none"
        self.was_ready = True
        self.death: GuestError | None = None

    @property
    def busy_s(self) -> float:
        return time.monotonic() - self._asked_at if self._done is not None else 0.0

    def check(self) -> None:
        """Nothing here can be stopped alone."""

    def start(self) -> None:
        self._env = self._factory()
        if isinstance(self._env, DiskEnv):
            self._env.disk = self._sandbox.disk
        self._steps = 0
        self.state = "ready"

    def stop(self, graceful: bool, then: Callable[[], None] | None = None) -> None:
        self._env, self.state, self._done = None, "none", None
        if then is not None:
            then()

    def call(self, request: dict[str, Any], done: Callable[[bytes, bytes], None]) -> None:
        faults = self._sandbox.faults
        self._done, self._asked_at = done, time.monotonic()
        delay_s = {"env.step": faults.step_delay_s, "env.reset": faults.reset_delay_s}.get(request["op"], 0.0)
        if request["op"] == "env.step":
            delay_s += self._sandbox.slow_s
        if delay_s:
            self._sandbox.loop.call_later(delay_s, lambda: self._act(request))
        else:
            self._act(request)

    def _act(self, request: dict[str, Any]) -> None:
        if self._done is None or not self._sandbox.running:
            return
        if self._sandbox.silent is not None:
            self._sandbox.on_thaw.append(lambda: self._act(request))
            return
        if request["op"] == "env.step" and self._fail():
            return
        self._finish(*envhost.answer(self._env, request))
        self._steps += request["op"] == "env.step"

    def _fail(self) -> bool:
        faults, sandbox, steps = self._sandbox.faults, self._sandbox, self._steps
        if steps == faults.die_after_steps:
            sandbox.die(faults.exit_code, oom=False)
        elif steps == faults.oom_after_steps:
            sandbox.die(137, oom=True)
        elif steps == faults.freeze_after_steps:
            sandbox.silence(Seen.STOPPED)
        elif steps == faults.pause_after_steps:
            sandbox.silence(Seen.PAUSED)
        elif steps == faults.env_dies_after_steps:
            self.die(f"exited with code {faults.exit_code}")
        elif steps == faults.env_oom_after_steps:
            sandbox.child_oom()
            self.die("exited by signal 9 (out of memory: the sandbox reached its limit)")
        elif steps == faults.env_raises_after_steps:
            self._finish(envhost.ERROR, envhost.error_payload("the environment raised", RuntimeError("told to")))
        else:
            if steps == faults.child_oom_after_steps:
                sandbox.child_oom()
            return False
        return True

    def die(self, how: str) -> None:
        """As the process of a real one does: whoever waits is told, then the guest decides whether to start it anew."""
        self.state = "dead"
        self.death = GuestError("sandbox-lost", "the environment's process is gone", "", f"env process {how}")
        told = self._done is not None
        if told:
            self._finish(envhost.ERROR, envhost.dumps(self.death.frame()))
        self._sandbox.server.env_died(self.death, told)

    def _finish(self, kind: bytes, payload: bytes) -> None:
        done, self._done = self._done, None
        done(kind, payload)
