"""The fake runtime speaks the real protocol and fails exactly as told."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rock.domain import errors
from rock.domain.detection import Seen
from rock.domain.errors import DeadlineExceeded, ImageNotFound, RuntimeUnavailable, SandboxLost
from rock.runtimes.base import RuntimeEvent
from rock.runtimes.fake import FakeRuntime
from rock.runtimes.faults import Faults
from rock.wire.guest_client import GuestClient
from rock.wire.models import SandboxSpec

TOY = SandboxSpec(image="toy", env="toy")


@asynccontextmanager
async def lab(**faults: Any) -> AsyncIterator[tuple[FakeRuntime, Path]]:
    directory = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))
    runtime = FakeRuntime(faults=Faults(**faults))
    try:
        yield runtime, directory
    finally:
        await runtime.destroy()
        shutil.rmtree(directory)


async def reach(directory: Path, within_s: float = 5.0) -> GuestClient:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await GuestClient.connect_unix(str(directory / "guest.sock"))
        except SandboxLost:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.005)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_an_episode_is_played_and_a_command_run() -> None:
    async def main() -> None:
        async with lab() as (runtime, directory):
            await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await client.call("env.reset", seq=0, task="2", seed=1)
                await client.call("env.step", seq=1, action="x")
                assert (await client.call("env.step", seq=2, action="y"))["terminated"]
                assert (await client.call("exec", argv=["echo", "hi"]))["stdout"] == "hi\n"

    run(main)


@pytest.mark.parametrize(
    ("fault", "exit_code", "oom"),
    [({"die_after_steps": 1, "exit_code": 9}, 9, False), ({"oom_after_steps": 1}, 137, True)],
)
def test_it_dies_after_so_many_steps(fault: dict[str, Any], exit_code: int, oom: bool) -> None:
    async def main() -> None:
        async with lab(**fault) as (runtime, directory):
            events = runtime.watch()
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            handle = await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await client.call("env.reset", seq=0, task="9", seed=1)
                await client.call("env.step", seq=1, action="x")
                with pytest.raises(SandboxLost):
                    await client.call("env.step", seq=2, action="x", timeout_s=5.0)
            seen = await runtime.inspect(handle)
            assert seen is not None
            assert (seen.running, seen.exit_code, seen.oom_killed) == (False, exit_code, oom)
            expected = RuntimeEvent("sb-1", "oom") if oom else RuntimeEvent("sb-1", "died", exit_code)
            assert await asyncio.wait_for(first, 5.0) == expected
            with pytest.raises(SandboxLost):
                await GuestClient.connect_unix(str(directory / "a" / "guest.sock"))

    run(main)


def test_a_child_is_killed_for_its_memory_and_the_sandbox_lives() -> None:
    async def main() -> None:
        async with lab() as (runtime, directory):
            await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await runtime.oom_child("sb-1")
                (observed,) = await runtime.list_owned()
                assert (observed.running, observed.oom_killed, observed.oom_kills) == (True, False, 1)
                await client.call("ping")

    run(main)


def test_a_slow_one_says_how_long_its_steps_took() -> None:
    async def main() -> None:
        async with lab() as (runtime, directory):
            await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await client.call("env.reset", seq=0, task="9", seed=1)
                await client.call("env.step", seq=1, action="quick")
                await runtime.slow("sb-1", 0.05)
                await client.call("env.step", seq=2, action="slow")
                steps = (await client.call("ping"))["steps"]
                assert steps["count"] == sum(steps["us"].values()) == 2
                assert steps["max_s"] >= 0.05
                assert steps["sum_s"] >= steps["max_s"]

    run(main)


def test_it_freezes_and_thaws() -> None:
    async def main() -> None:
        async with lab() as (runtime, directory):
            await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await client.call("ping")
                for silence, seen in (
                    (runtime.freeze, Seen.STOPPED),
                    (runtime.pause, Seen.PAUSED),
                    (runtime.hang, Seen.SLEEPING),
                    (runtime.starve, Seen.RUNNABLE),
                ):
                    await silence("sb-1")
                    with pytest.raises(DeadlineExceeded):
                        await client.call("ping", timeout_s=0.1)
                    (observed,) = await runtime.list_owned()
                    assert (observed.running, observed.paused) == (True, seen is Seen.PAUSED)
                    assert (await runtime.look("fake-sb-1")).seen is seen
                    await runtime.thaw("sb-1")
                    await client.call("ping", timeout_s=5.0)
                await runtime.kill("sb-1")
                assert (await runtime.look("fake-sb-1")).seen is Seen.GONE

    run(main)


def test_only_the_environment_dies_or_raises() -> None:
    async def main() -> None:
        async with lab(env_dies_after_steps=0) as (runtime, directory):
            await runtime.start("sb-1", TOY, directory / "a")
            async with await reach(directory / "a") as client:
                await client.call("env.reset", seq=0, task="9", seed=1)
                with pytest.raises(SandboxLost):
                    await client.call("env.step", seq=1, action="x")
                ping = await client.call("ping")
                assert (ping["env"], ping["env_deaths"]) == ("ready", 1)  # the guest has started it anew
                assert "exited with code 1" in ping["env_cause"]
                runtime.faults.env_dies_after_steps = None
                runtime.faults.env_raises_after_steps = 0
                await client.call("env.reset", seq=0, task="9", seed=1)
                with pytest.raises(errors.EnvironmentError):
                    await client.call("env.step", seq=1, action="x")

    run(main)


def test_starting_fails_in_every_way() -> None:
    async def main() -> None:
        async with lab(missing_images={"gone"}, fail_next_starts=1) as (runtime, directory):
            with pytest.raises(ImageNotFound):
                await runtime.start("sb-0", SandboxSpec(image="gone"), directory / "0")
            with pytest.raises(RuntimeUnavailable):
                await runtime.start("sb-1", TOY, directory / "1")
            await runtime.start("sb-2", TOY, directory / "2")
            runtime.faults.dies_at_start = True
            handle = await runtime.start("sb-3", TOY, directory / "3")
            seen = await runtime.inspect(handle)
            assert seen is not None
            assert not seen.running
            runtime.faults.dies_at_start = False
            runtime.faults.never_listens = True
            await runtime.start("sb-4", TOY, directory / "4")
            with pytest.raises(SandboxLost):
                await reach(directory / "4", within_s=0.1)
            runtime.faults.unavailable = "switched off"
            assert not (await runtime.check()).ok
            with pytest.raises(RuntimeUnavailable, match="switched off"):
                await runtime.start("sb-5", TOY, directory / "5")
            assert len(await runtime.list_owned()) == 3

    run(main)


def test_a_thousand_are_cheap() -> None:
    async def main() -> None:
        async with lab() as (runtime, directory):
            threads = threading.active_count()
            for number in range(1000):
                await runtime.start(f"sb-{number}", TOY, directory / str(number))
            assert threading.active_count() - threads < 50  # what asyncio's own pool may add; none per sandbox
            async with await reach(directory / "999") as client:
                await client.call("ping")
            for one in await runtime.list_owned():
                await runtime.stop(one.handle)
            assert await runtime.list_owned() == []

    run(main)


def test_faults_can_be_for_some_sandboxes_only() -> None:
    async def main() -> None:
        async with lab(start_error="no", applies_to=lambda spec: spec.image == "bad") as (runtime, directory):
            with pytest.raises(RuntimeUnavailable):
                await runtime.start("sb-1", SandboxSpec(image="bad"), directory / "1")
            await runtime.start("sb-2", SandboxSpec(image="good"), directory / "2")

    run(main)
