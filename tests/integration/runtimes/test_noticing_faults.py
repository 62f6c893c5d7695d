"""A node notices, explains and survives what really happens to real sandboxes. Conditions, not timings."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.domain.detection import Seen
from rock.domain.errors import SandboxLost
from rock.domain.sandbox import SandboxState
from rock.node.config import NodeConfig
from rock.node.node import Node
from rock.runtimes.base import Runtime
from rock.runtimes.bubblewrap import BubblewrapRuntime
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker import DockerRuntime
from rock.wire.guest_client import GuestClient
from rock.wire.handle import token_sha256
from rock.wire.models import EventView, Evidence, Limits, SandboxSpec, SandboxView

ENOUGH_S = 60.0
MEMORY = Limits(memory_bytes=64 << 20)
# Shared memory counts for the control group, and not for the limit on a process's own data that bubblewrap sets too.
HOG = "import mmap; m = mmap.mmap(-1, 256 << 20); [m.seek(i << 20) or m.write(b'x' * (1 << 20)) for i in range(256)]"


class World:
    """A node on a real runtime, and all it said."""

    def __init__(self, runtime: Runtime, directory: Path) -> None:
        self.runtime = runtime
        self.node = Node(NodeConfig("n1", directory, capacity=4), runtime)
        self.changes: list[SandboxView] = []
        self.events: list[EventView] = []
        self.node.on_change(self.changes.append)
        self.node.on_event(self.events.append)

    async def claim(self, spec: SandboxSpec) -> SandboxView:
        token = token_sha256("secret")
        return await self.node.claim(
            spec, lease_id="ls-1", token_sha256=token, epoch=1, run_id="run-1", wait_s=ENOUGH_S
        )

    async def guest(self, view: SandboxView) -> GuestClient:
        return await GuestClient.connect_unix(self.node.endpoint(view.id).socket_path)

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + ENOUGH_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {ENOUGH_S:g} s: {what}; events: {self.events}"
            await asyncio.sleep(0.02)
        return found

    async def evidence(self, view: SandboxView) -> Evidence:
        """Of its failure, once it has failed."""

        def failed() -> SandboxView | None:
            return next((v for v in self.changes if v.id == view.id and v.state is SandboxState.FAILED), None)

        found = (await self.until(failed, "it has failed")).evidence
        assert found.probes
        assert found.pressure.load_per_cpu > 0
        assert found.detected_after_s is not None
        return found  # type: ignore[no-any-return]

    def event(self, kind: str) -> EventView | None:
        return next((event for event in self.events if event.kind == kind), None)


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("bwrap", marks=pytest.mark.bwrap)]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spec(kind: str, request: pytest.FixtureRequest) -> SandboxSpec:
    """The counter, on little memory."""
    made: SandboxSpec
    if kind == "docker":
        made = request.getfixturevalue("counter_spec")
    else:
        made = request.getfixturevalue("counter_catalog").spec("counter")
    return made.model_copy(update={"limits": MEMORY})


@pytest.fixture
def world(kind: str, instance: str, short_dir: Path, counter_catalog: EnvCatalog) -> Callable[[], Any]:
    @asynccontextmanager
    async def make() -> AsyncIterator[World]:
        home = counter_catalog.root.parent
        runtime = DockerRuntime(instance) if kind == "docker" else BubblewrapRuntime(instance, home=home)
        w = World(runtime, short_dir / "run")
        await w.node.open()
        await w.node.adopt([])
        try:
            yield w
        finally:
            await w.node.close()

    return make


def guest_process(sandbox_id: str) -> psutil.Process:
    """As the host sees it: the one whose parent is not a guest too."""
    found = [p for p in psutil.process_iter() if _is_guest(p, sandbox_id)]
    (guest,) = [p for p in found if p.ppid() not in {other.pid for other in found}]
    return guest


def _is_guest(process: psutil.Process, sandbox_id: str) -> bool:
    try:
        return (
            any(word.endswith("guest.pyz") for word in process.cmdline()[:2])
            and process.environ().get("ROCK_SANDBOX") == sandbox_id
        )
    except psutil.Error:
        return False


def test_a_killed_guest(world: Any, spec: SandboxSpec) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(spec)
            async with await w.guest(view) as guest:
                await guest.call("env.reset", seq=0, task="to-5", seed=0, options={})
                await guest.call("env.step", seq=1, action="print")
            guest_process(view.id).kill()
            evidence = await w.evidence(view)
            assert (evidence.cause, evidence.exit_code, evidence.oom_killed) == ("exited", 137, False)
            assert any("noise" in line for line in evidence.last_output)

    asyncio.run(main())


def test_a_stopped_guest_and_one_that_goes_on(world: Any, spec: SandboxSpec) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(spec)
            stopped = guest_process(view.id)
            assert (await w.runtime.look(view.handle)).seen in (Seen.SLEEPING, Seen.RUNNABLE)
            stopped.send_signal(signal.SIGSTOP)
            while (await w.runtime.look(view.handle)).seen is not Seen.STOPPED:
                assert stopped.is_running()  # it takes the signal in a moment
            evidence = await w.evidence(view)
            assert evidence.cause == "frozen"
            assert "stopped by a signal" in evidence.detail
            assert not evidence.probes[-1].ok
            await w.until(lambda: not stopped.is_running(), "its processes are gone although they were stopped")

    asyncio.run(main())


@pytest.mark.docker
def test_a_paused_container(docker_base: str, instance: str, short_dir: Path) -> None:
    async def main() -> None:
        w = World(DockerRuntime(instance), short_dir / "run")
        await w.node.open()
        await w.node.adopt([])
        try:
            view = await w.claim(SandboxSpec(image=docker_base))
            subprocess.run(["docker", "pause", view.handle], check=True, capture_output=True)
            assert (await w.runtime.look(view.handle)).seen is Seen.PAUSED
            evidence = await w.evidence(view)
            assert evidence.cause == "paused"
        finally:
            await w.node.close()

    asyncio.run(main())


def test_a_child_killed_for_its_memory_fails_nothing(kind: str, world: Any, spec: SandboxSpec) -> None:
    if kind == "bwrap" and os.geteuid() != 0:
        pytest.skip("control groups, which count such kills, need root")

    async def main() -> None:
        async with world() as w:
            view = await w.claim(spec)
            async with await w.guest(view) as guest:
                done = await guest.call("exec", argv=["python3", "-c", HOG], timeout_s=ENOUGH_S)
                assert done["exit_code"] in (-9, 137)
                event = await w.until(lambda: w.event("sandbox.oom"), "the kill is told")
                assert (event.subject, event.run_id) == (view.id, "run-1")
                seen = await w.node.sandbox(view.id)
                assert (seen.state, seen.oom_kills) == (SandboxState.LEASED, 1)
                done = await guest.call("exec", argv=["echo", "alive"])
                assert done["stdout"] == "alive\n"
            # What kills it later is not put down to memory, but the kill is remembered.
            w.node._fleet.records[view.id].health.oom_at -= 3600
            guest_process(view.id).kill()
            evidence = await w.evidence(view)
            assert (evidence.cause, evidence.oom_killed) == ("exited", True)

    asyncio.run(main())


def test_a_killed_environment_is_started_anew_inside(world: Any, spec: SandboxSpec) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(spec)
            async with await w.guest(view) as guest:
                await guest.call("env.reset", seq=0, task="to-5", seed=0, options={})
                (env,) = guest_process(view.id).children()
                env.kill()
                event = await w.until(lambda: w.event("sandbox.env_died"), "the death is told")
                assert "signal 9" in event.detail
                with pytest.raises(SandboxLost):
                    await guest.call("env.step", seq=1, action="inc")
                await guest.call("env.reset", seq=0, task="to-5", seed=0, options={})
                assert (await guest.call("env.step", seq=1, action="inc"))["observation"] == "1 of 5"
            seen = await w.node.sandbox(view.id)
            assert (seen.state, seen.env_deaths) == (SandboxState.LEASED, 1)

    asyncio.run(main())


def test_an_environment_that_dies_again_and_again_is_the_nodes_to_deal_with(world: Any, spec: SandboxSpec) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(spec)
            async with await w.guest(view) as guest:
                for _ in range(4):
                    await guest.call("env.reset", seq=0, task="to-5", seed=0, options={})
                    with pytest.raises(SandboxLost):
                        await guest.call("env.step", seq=1, action="exit")
            evidence = await w.evidence(view)
            assert evidence.cause == "env_dead"
            assert "exited with code 3" in evidence.detail

    asyncio.run(main())
