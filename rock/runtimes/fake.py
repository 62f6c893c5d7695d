"""A runtime without isolation that fails on demand: the real guest protocol on real sockets, all in one thread.

For tests of everything above: thousands of sandboxes cost a socket each. ``exec`` and shells run **on this machine, as
this user**; never give it to a model. What is started here ends with this process.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rock.domain.errors import ImageNotFound, RuntimeUnavailable
from rock.guest import envhost
from rock.guest.errors import GuestError
from rock.guest.loop import Loop
from rock.guest.output import Log
from rock.guest.server import Server
from rock.runtimes.base import Availability, Observed, RuntimeEvent
from rock.runtimes.shared import socket_path
from rock.wire.models import SandboxSpec


@dataclass
class Faults:
    """What goes wrong. Change it at any time; it is read when the thing happens. Defaults: nothing fails."""

    unavailable: str = ""
    """Why the runtime cannot be used: ``check``, ``ensure_image`` and ``start`` say so."""
    missing_images: set[str] = field(default_factory=set)
    start_error: str = ""
    """Every ``start`` raises RuntimeUnavailable with this text."""
    fail_next_starts: int = 0
    """That many of the next starts raise, then it is over."""
    start_delay_s: float = 0.0
    """``start`` takes this long."""
    listen_delay_s: float = 0.0
    """The guest's socket appears this long after ``start`` returned."""
    never_listens: bool = False
    """The process exists, its guest never answers."""
    dies_at_start: bool = False
    """The process ends at once, with ``exit_code``."""
    die_after_steps: int | None = None
    oom_after_steps: int | None = None
    freeze_after_steps: int | None = None
    env_dies_after_steps: int | None = None
    """Only the environment's process dies; the guest lives on."""
    env_raises_after_steps: int | None = None
    step_delay_s: float = 0.0
    reset_delay_s: float = 0.0
    exit_code: int = 1
    stop_delay_s: float = 0.0
    stop_error: str = ""
    inspect_error: str = ""
    list_error: str = ""
    deaf: bool = False
    """``watch`` tells nothing: only the reconcile loop can find out."""
    applies_to: Callable[[SandboxSpec], bool] | None = None
    """Which sandboxes the faults concern; None: all."""


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


class _InlineEnv:
    """Looks like ``EnvProcess``, in the loop's own thread, with faults."""

    def __init__(self, sandbox: _FakeSandbox, factory: Callable[[], Any]) -> None:
        self._sandbox = sandbox
        self._factory = factory
        self._env: Any = None
        self._steps = 0
        self._done: Any = None
        self._asked_at = 0.0
        self.state = "none"
        self.death: GuestError | None = None

    @property
    def busy_s(self) -> float:
        return time.monotonic() - self._asked_at if self._done is not None else 0.0

    def start(self) -> None:
        self._env = self._factory()
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
        if delay_s:
            self._sandbox.loop.call_later(delay_s, lambda: self._act(request))
        else:
            self._act(request)

    def _act(self, request: dict[str, Any]) -> None:
        if self._done is None or not self._sandbox.running:
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
            sandbox.freeze()
        elif steps == faults.env_dies_after_steps:
            self._die(faults.exit_code)
        elif steps == faults.env_raises_after_steps:
            self._finish(envhost.ERROR, envhost.error_payload("the environment raised", RuntimeError("told to")))
        else:
            return False
        return True

    def _die(self, code: int) -> None:
        self.state = "dead"
        cause = f"env process exited with code {code}"
        self.death = GuestError("sandbox-lost", "the environment's process is gone", "", cause)
        self._finish(envhost.ERROR, envhost.dumps(self.death.frame()))

    def _finish(self, kind: bytes, payload: bytes) -> None:
        done, self._done = self._done, None
        done(kind, payload)


class _FakeSandbox:
    """One guest. All methods run in the loop's thread."""

    def __init__(self, runtime: FakeRuntime, sandbox_id: str, spec: SandboxSpec, path: Path) -> None:
        self._runtime = runtime
        self.loop = runtime.loop
        self.id = sandbox_id
        self.spec = spec
        self.path = path
        self.running = True
        self.frozen = False
        self.exit_code: int | None = None
        self.oom = False
        self.log = Log()
        self.server = Server(self.loop, self.log, lambda: self.die(0, oom=False))
        if spec.env or spec.entry:
            self.server.env = _InlineEnv(self, runtime.env_factory)
            self.server.env.start()

    @property
    def faults(self) -> Faults:
        faults = self._runtime.faults
        return faults if faults.applies_to is None or faults.applies_to(self.spec) else _NO_FAULTS

    def begin(self) -> None:
        faults = self.faults
        if faults.dies_at_start:
            self.die(faults.exit_code, oom=False)
        elif not faults.never_listens:
            self.loop.call_later(faults.listen_delay_s, self._listen)

    def _listen(self) -> None:
        if self.running:
            self.server.listen(str(self.path))

    def die(self, exit_code: int, *, oom: bool) -> None:
        if not self.running:
            return
        self.running, self.exit_code, self.oom = False, exit_code, oom
        self.server.stop(lambda: None)
        self.server.disconnect_all()
        if oom:
            self._runtime.tell(RuntimeEvent(self.id, "oom"))
        self._runtime.tell(RuntimeEvent(self.id, "died", exit_code))

    def freeze(self) -> None:
        self.frozen = True
        self.server.set_listening(False)

    def thaw(self) -> None:
        self.frozen = False
        self.server.set_listening(True)

    def observed(self) -> Observed:
        return Observed(
            sandbox_id=self.id,
            handle=f"fake-{self.id}",
            running=self.running,
            paused=self.frozen and self.running,
            exit_code=self.exit_code,
            oom_killed=self.oom,
            spec_digest=self.spec.digest,
        )


_NO_FAULTS = Faults()


class FakeRuntime:
    """``env_factory`` makes the environment of each sandbox that has one. Sandboxes outlive ``close``, as real ones do,
    so a second node can adopt them from the same object; ``destroy`` ends all."""

    name = "fake"
    default_image = "fake"

    def __init__(
        self, instance: str = "fake", *, faults: Faults | None = None, env_factory: Callable[[], Any] = ToyEnv
    ) -> None:
        self.instance = instance
        self.faults = faults or Faults()
        self.env_factory = env_factory
        self.loop = Loop(own_signals=False)
        self.starts = 0
        self._sandboxes: dict[str, _FakeSandbox] = {}
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[RuntimeEvent]]] = set()
        self._thread = threading.Thread(target=self.loop.run, name="fake-runtime", daemon=True)
        self._thread.start()

    async def check(self) -> Availability:
        if self.faults.unavailable:
            return Availability(False, self.faults.unavailable, "Clear Faults.unavailable.")
        return Availability(True, "fake runtime: no isolation, for tests only")

    async def ensure_image(self, image: str) -> None:
        self._require_available()
        if image in self.faults.missing_images:
            raise ImageNotFound(f"no image {image!r}", hint="Remove it from Faults.missing_images.")

    async def start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        await self.ensure_image(spec.image)
        faults = self.faults if self.faults.applies_to is None or self.faults.applies_to(spec) else _NO_FAULTS
        self.starts += 1
        if faults.start_delay_s:
            await asyncio.sleep(faults.start_delay_s)
        if faults.fail_next_starts > 0:
            faults.fail_next_starts -= 1
            raise RuntimeUnavailable("the fake runtime was told to fail this start")
        if faults.start_error:
            raise RuntimeUnavailable(faults.start_error)
        await asyncio.to_thread(shared_dir.mkdir, parents=True, exist_ok=True)
        sandbox = _FakeSandbox(self, sandbox_id, spec, socket_path(shared_dir))
        self._sandboxes[f"fake-{sandbox_id}"] = sandbox
        await self._in_loop(sandbox.begin)
        return f"fake-{sandbox_id}"

    async def stop(self, handle: str) -> None:
        sandbox = self._sandboxes.get(handle)
        if sandbox is None:
            return
        if sandbox.faults.stop_delay_s:
            await asyncio.sleep(sandbox.faults.stop_delay_s)
        if sandbox.faults.stop_error:
            raise RuntimeUnavailable(sandbox.faults.stop_error)
        await self._in_loop(lambda: sandbox.die(137, oom=False))
        self._sandboxes.pop(handle, None)

    async def inspect(self, handle: str) -> Observed | None:
        if self.faults.inspect_error:
            raise RuntimeUnavailable(self.faults.inspect_error)
        sandbox = self._sandboxes.get(handle)
        return sandbox.observed() if sandbox else None

    async def list_owned(self) -> Sequence[Observed]:
        if self.faults.list_error:
            raise RuntimeUnavailable(self.faults.list_error)
        return [sandbox.observed() for sandbox in list(self._sandboxes.values())]

    async def logs(self, handle: str, lines: int) -> Sequence[str]:
        sandbox = self._sandboxes.get(handle)
        return sandbox.log.lines(lines) if sandbox else []

    async def watch(self) -> AsyncIterator[RuntimeEvent]:
        watcher = (asyncio.get_running_loop(), asyncio.Queue[RuntimeEvent]())
        self._watchers.add(watcher)
        try:
            while True:
                yield await watcher[1].get()
        finally:
            self._watchers.discard(watcher)

    async def close(self) -> None:
        """Sandboxes live on."""

    # --- for tests ----------------------------------------------------------------------------------------------------

    async def kill(self, sandbox_id: str, exit_code: int = 137, *, oom: bool = False) -> None:
        """End the sandbox's process, as ``docker kill`` would."""
        sandbox = self._sandboxes[f"fake-{sandbox_id}"]
        await self._in_loop(lambda: sandbox.die(exit_code, oom=oom))

    async def remove(self, sandbox_id: str) -> None:
        """Take the sandbox away without a trace, as ``docker rm -f`` would."""
        sandbox = self._sandboxes.pop(f"fake-{sandbox_id}")  # first: nobody may see it ended, but not yet gone
        await self._in_loop(lambda: sandbox.die(137, oom=False))

    async def freeze(self, sandbox_id: str) -> None:
        """It exists and runs, and answers nothing, as under ``docker pause``."""
        await self._in_loop(self._sandboxes[f"fake-{sandbox_id}"].freeze)

    async def thaw(self, sandbox_id: str) -> None:
        await self._in_loop(self._sandboxes[f"fake-{sandbox_id}"].thaw)

    async def destroy(self) -> None:
        """End every sandbox and the thread."""
        for sandbox in list(self._sandboxes.values()):
            await self._in_loop(functools.partial(sandbox.die, 137, oom=False))
        self._sandboxes.clear()
        self.loop.call_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)
        self.loop.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def tell(self, event: RuntimeEvent) -> None:
        if self.faults.deaf:
            return
        for loop, queue in list(self._watchers):
            loop.call_soon_threadsafe(queue.put_nowait, event)

    def _require_available(self) -> None:
        if self.faults.unavailable:
            raise RuntimeUnavailable(self.faults.unavailable, hint="Clear Faults.unavailable.")

    async def _in_loop(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the sandboxes' thread and wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def run() -> None:
            try:
                action()
            except OSError as error:
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, None)

        self.loop.call_threadsafe(run)
        await done
