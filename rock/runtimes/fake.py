"""A runtime without isolation that fails on demand: the real guest protocol on real sockets, all in one thread.

For tests of everything above: thousands of sandboxes cost a socket each. ``exec`` and shells run **on this machine, as
this user**; never give it to a model. What is started here ends with this process.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from rock.domain.detection import Look, Seen
from rock.domain.errors import Conflict, ImageNotFound, RuntimeUnavailable, SandboxLost
from rock.guest.loop import Loop
from rock.guest.output import Log
from rock.guest.server import Server
from rock.runtimes.base import Availability, Observed, RuntimeEvent
from rock.runtimes.fake_env import InlineEnv, ToyEnv
from rock.runtimes.faults import Faults
from rock.runtimes.shared import nothing_to_keep, socket_path
from rock.runtimes.usage import Usage
from rock.wire.models import SNAPSHOT_PREFIX, SandboxSpec


class FakeSandbox:
    """One guest. All methods run in the loop's thread."""

    def __init__(self, runtime: FakeRuntime, sandbox_id: str, spec: SandboxSpec, path: Path) -> None:
        self._runtime = runtime
        self.loop = runtime.loop
        self.id = sandbox_id
        self.spec = spec
        self.path = path
        self.running = True
        self.silent: Seen | None = None
        """Why it answers nothing, as a look at its process would tell; None: it answers."""
        self.on_thaw: list[Callable[[], None]] = []
        self.disk: dict[str, Any] = copy.deepcopy(runtime.kept.get(spec.image, {}))
        """Its files, for an environment that has a ``disk``; what a snapshot keeps."""
        self.slow_s = 0.0
        self.oom_kills = 0
        self.exit_code: int | None = None
        self.oom = False
        self.log = Log()
        self.server = Server(self.loop, self.log, lambda: self.die(0, oom=False))
        if spec.env or spec.entry:
            self.server.env = InlineEnv(self, runtime.env_factory)
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
            self.child_oom()
        self._runtime.tell(RuntimeEvent(self.id, "died", exit_code))

    def child_oom(self) -> None:
        self.oom_kills += 1
        self._runtime.tell(RuntimeEvent(self.id, "oom"))

    def silence(self, seen: Seen) -> None:
        self.silent = seen
        self.server.set_listening(False)

    def thaw(self) -> None:
        self.silent = None
        self.server.set_listening(True)
        held, self.on_thaw = self.on_thaw, []
        for act in held:
            act()

    def look(self) -> Look:
        return Look((self.silent or Seen.SLEEPING) if self.running else Seen.GONE)

    def observed(self) -> Observed:
        return Observed(
            sandbox_id=self.id,
            handle=f"fake-{self.id}",
            running=self.running,
            paused=self.silent is Seen.PAUSED and self.running,
            exit_code=self.exit_code,
            oom_killed=self.oom,
            spec_digest=self.spec.digest,
            oom_kills=self.oom_kills,
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
        self.image_versions: dict[str, str] = {}
        """What ``ensure_image`` answers: change it, and the image was built anew."""
        self.kept: dict[str, dict[str, Any]] = {}
        """Snapshots by name."""
        self._sandboxes: dict[str, FakeSandbox] = {}
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[RuntimeEvent]]] = set()
        self._thread = threading.Thread(target=self.loop.run, name="fake-runtime", daemon=True)
        self._thread.start()

    async def check(self) -> Availability:
        if self.faults.unavailable:
            return Availability(False, self.faults.unavailable, "Clear Faults.unavailable.")
        return Availability(True, "fake runtime: no isolation, for tests only")

    async def ensure_image(self, image: str) -> str:
        self._require_available()
        if image in self.faults.missing_images or (image.startswith(SNAPSHOT_PREFIX) and image not in self.kept):
            raise ImageNotFound(f"no image {image!r}", hint="Remove it from Faults.missing_images.")
        return self.image_versions.get(image, "")

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
        sandbox = FakeSandbox(self, sandbox_id, spec, socket_path(shared_dir))
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

    async def look(self, handle: str) -> Look:
        if self.faults.inspect_error:
            raise RuntimeUnavailable(self.faults.inspect_error)
        sandbox = self._sandboxes.get(handle)
        return sandbox.look() if sandbox else Look(Seen.GONE)

    async def list_owned(self) -> Sequence[Observed]:
        if self.faults.list_error:
            raise RuntimeUnavailable(self.faults.list_error)
        return [sandbox.observed() for sandbox in list(self._sandboxes.values())]

    async def usage(self, handle: str) -> Usage | None:
        """It is a part of this process and takes nothing of its own."""
        return Usage(0.0, 0, 1) if handle in self._sandboxes else None

    async def written(self, handle: str, enough: int) -> int | None:
        sandbox = self._sandboxes.get(handle)
        return None if sandbox is None or sandbox.spec.read_only else sandbox.faults.written_bytes

    async def logs(self, handle: str, lines: int) -> Sequence[str]:
        sandbox = self._sandboxes.get(handle)
        return sandbox.log.lines(lines) if sandbox else []

    async def snapshot(self, handle: str, name: str, lease_id: str) -> int:
        sandbox = self._sandboxes.get(handle)
        if sandbox is None:
            raise SandboxLost("it was removed")
        if sandbox.spec.read_only:
            raise nothing_to_keep(sandbox.spec.env)
        if sandbox.faults.snapshot_delay_s:
            await asyncio.sleep(sandbox.faults.snapshot_delay_s)
        if sandbox.faults.snapshot_error:
            raise RuntimeUnavailable(sandbox.faults.snapshot_error)
        await self._in_loop(lambda: self.kept.update({name: copy.deepcopy(sandbox.disk)}))
        return len(repr(sandbox.disk))

    async def remove_snapshot(self, name: str) -> None:
        if any(sandbox.spec.image == name for sandbox in self._sandboxes.values()):
            raise Conflict(f"snapshot {name} is in use")
        self.kept.pop(name, None)

    async def snapshots(self) -> Sequence[str]:
        return list(self.kept)

    async def disk_used(self) -> float:
        return self.faults.disk_used

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
        """Its guest answers nothing and is seen to be stopped, as after SIGSTOP."""
        await self._silence(sandbox_id, Seen.STOPPED)

    async def pause(self, sandbox_id: str) -> None:
        """The same under ``docker pause``."""
        await self._silence(sandbox_id, Seen.PAUSED)

    async def hang(self, sandbox_id: str) -> None:
        """Its guest answers nothing, and nothing is to be seen of why: it sleeps."""
        await self._silence(sandbox_id, Seen.SLEEPING)

    async def starve(self, sandbox_id: str) -> None:
        """Its guest wants to answer and gets no processor, as on a machine under strain."""
        await self._silence(sandbox_id, Seen.RUNNABLE)

    async def thaw(self, sandbox_id: str) -> None:
        """It answers again, also what it was asked meanwhile."""
        await self._in_loop(self._sandboxes[f"fake-{sandbox_id}"].thaw)

    async def slow(self, sandbox_id: str, step_s: float) -> None:
        """Each of its steps takes ``step_s`` longer; 0 ends it."""
        sandbox = self._sandboxes[f"fake-{sandbox_id}"]
        await self._in_loop(lambda: setattr(sandbox, "slow_s", step_s))

    async def oom_child(self, sandbox_id: str) -> None:
        """The kernel kills a child in it for its memory; nothing else happens."""
        await self._in_loop(self._sandboxes[f"fake-{sandbox_id}"].child_oom)

    async def kill_env(self, sandbox_id: str, *, oom: bool = False) -> None:
        """End the environment's process alone."""
        sandbox = self._sandboxes[f"fake-{sandbox_id}"]

        def kill() -> None:
            if oom:
                sandbox.child_oom()
            sandbox.server.env.die("exited by signal 9")

        await self._in_loop(kill)

    async def _silence(self, sandbox_id: str, seen: Seen) -> None:
        await self._in_loop(functools.partial(self._sandboxes[f"fake-{sandbox_id}"].silence, seen))

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
            except Exception as error:  # noqa: BLE001 - for whoever waits, who would wait for ever
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, None)

        self.loop.call_threadsafe(run)
        await done
