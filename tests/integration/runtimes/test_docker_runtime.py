"""The Docker runtime on a real engine: the walls as seen from inside, deaths as seen from outside."""

from __future__ import annotations

import asyncio
import os
import subprocess
import textwrap
from typing import Any

import pytest

from rock.domain.errors import ImageNotFound, InvalidRequest, SandboxLost
from rock.runtimes.base import RuntimeEvent
from rock.runtimes.docker import DockerRuntime
from rock.wire.models import Limits, SandboxSpec

pytestmark = pytest.mark.docker


def test_a_sandbox_starts_answers_and_leaves_nothing(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        assert (await runtime.check()).ok
        await runtime.ensure_image(docker_base)
        spec = SandboxSpec(image=docker_base)
        async with lab.sandbox(runtime, spec) as (sandbox_id, handle, client):
            assert (await client.call("hello"))["env"] == "none"
            seen = await runtime.inspect(handle)
            assert seen is not None
            assert (seen.sandbox_id, seen.running, seen.spec_digest) == (sandbox_id, True, spec.digest)
            assert [one.sandbox_id for one in await runtime.list_owned()] == [sandbox_id]
            assert await DockerRuntime("another").list_owned() == []
        assert await runtime.inspect(handle) is None
        assert await runtime.list_owned() == []
        await runtime.stop(handle)  # again: no error
        await runtime.close()

    asyncio.run(main())


def test_the_walls_hold_seen_from_inside(docker_base: str, lab: Any, instance: str) -> None:
    spec = SandboxSpec(
        image=docker_base, limits=Limits(memory_bytes=64 << 20, pids=40, tmpfs_bytes=4 << 20, open_files=200)
    )

    async def main() -> None:
        runtime = DockerRuntime(instance)
        async with lab.sandbox(runtime, spec) as (_, _, client):
            status = await lab.run(client, "cat", "/proc/self/status")
            fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(fields[capabilities], 16) == 0
            assert fields["NoNewPrivs"] == "1"
            assert fields["Seccomp"] == "2"
            assert fields["Uid"].split()[0] != "0"
            assert fields["Uid"].split()[0] == str(os.stat(lab.directory / os.listdir(lab.directory)[0]).st_uid)
            assert "Read-only file system" in await lab.run(client, "touch", "/etc/x")
            assert "No space left" in await lab.run(client, "dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=8")
            assert (await lab.run(client, "ls", "/sys/class/net")).split() == ["lo"]
            refused = await lab.run(
                client, "python3", "-c", "import socket; socket.create_connection(('169.254.169.254', 80), 2)"
            )
            assert "unreachable" in refused
            assert (await lab.run(client, "bash", "-c", "ulimit -n; ulimit -c")).split() == ["200", "0"]
            forks = textwrap.dedent("""
                import os, time
                try:
                    for n in range(99):
                        if not os.fork():
                            time.sleep(9)
                except OSError as error:
                    print(error)
            """)
            stopped = await client.call("exec", argv=["python3", "-c", forks])
            assert "Resource temporarily unavailable" in stopped["stdout"]

    asyncio.run(main())


def test_a_counter_is_played_in_its_own_image(counter_spec: SandboxSpec, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        async with lab.sandbox(runtime, counter_spec) as (_, _, client):
            first = await client.call("env.reset", seq=0, task="to-2", seed=7, options={})
            assert first == {"observation": "Count! 0 of 2", "info": {"seed": 7, "options": {}}}
            await client.call("env.step", seq=1, action="inc")
            last = await client.call("env.step", seq=2, action="inc")
            assert (last["reward"], last["terminated"], last["info"]) == (1.0, True, {"success": True})

    asyncio.run(main())


def test_running_out_of_memory_is_told_as_such(counter_spec: SandboxSpec, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        events: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        watching = asyncio.create_task(_collect(runtime, events))
        async with lab.sandbox(runtime, counter_spec) as (sandbox_id, handle, client):
            await client.call("env.reset", seq=0, task="to-2", seed=0, options={})
            with pytest.raises(SandboxLost) as lost:
                await client.call("env.step", seq=1, action="alloc 500", timeout_s=30.0)
            seen = await runtime.inspect(handle)
            assert seen is not None
            # Whether the kernel took the environment or the guest with it, the reason is known.
            assert "out of memory" in lost.value.cause or seen.oom_killed
            event = await asyncio.wait_for(events.get(), 10.0)
            assert (event.sandbox_id, event.kind) in {(sandbox_id, "oom"), (sandbox_id, "died")}
        watching.cancel()

    asyncio.run(main())


def test_a_death_is_told_and_its_output_kept(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        events: asyncio.Queue[RuntimeEvent] = asyncio.Queue()
        watching = asyncio.create_task(_collect(runtime, events))
        async with lab.sandbox(runtime, SandboxSpec(image=docker_base)) as (sandbox_id, handle, _):
            subprocess.run(["docker", "kill", handle], check=True, capture_output=True)
            event = await asyncio.wait_for(events.get(), 10.0)
            assert event == RuntimeEvent(sandbox_id, "died", 137)

            async def ended() -> bool:
                seen = await runtime.inspect(handle)
                return seen is not None and not seen.running and seen.exit_code == 137

            await lab.until(ended, "the container has ended")
            (listed,) = await runtime.list_owned()
            assert (listed.running, listed.exit_code) == (False, 137)
        watching.cancel()

    asyncio.run(main())


def test_a_paused_sandbox_shows_as_paused(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        async with lab.sandbox(runtime, SandboxSpec(image=docker_base)) as (_, handle, _):
            subprocess.run(["docker", "pause", handle], check=True, capture_output=True)
            seen = await runtime.inspect(handle)
            assert seen is not None
            assert (seen.running, seen.paused) == (True, True)
            assert [one.paused for one in await runtime.list_owned()] == [True]

    asyncio.run(main())


def test_a_missing_image_says_what_to_do(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        with pytest.raises(ImageNotFound, match="no-such-image"):
            await runtime.ensure_image("no-such-image:1")
        with pytest.raises(ImageNotFound, match="rock env build thing"):
            await runtime.start(lab.new_id(), SandboxSpec(image="rock-env-thing:abc"), lab.directory / "x")
        with pytest.raises(InvalidRequest, match="uid:gid"):
            await runtime.start(lab.new_id(), SandboxSpec(image=docker_base, user="bob"), lab.directory / "y")
        assert await runtime.list_owned() == []

    asyncio.run(main())


def test_a_sandbox_may_be_root_if_its_spec_says_so(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        spec = SandboxSpec(image=docker_base, user="root", read_only=False)
        async with lab.sandbox(runtime, spec) as (_, _, client):
            assert (await lab.run(client, "id", "-u")).strip() == "0"
            assert await lab.run(client, "touch", "/etc/x") == ""

    asyncio.run(main())


def test_what_the_guest_says_is_in_the_logs(docker_base: str, lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = DockerRuntime(instance)
        spec = SandboxSpec(image=docker_base, env="x", entry="no_such_module:Thing")
        sandbox_id = lab.new_id()
        handle = await runtime.start(sandbox_id, spec, lab.directory / sandbox_id)
        try:

            async def told() -> bool:
                return any("no_such_module" in line for line in await runtime.logs(handle, 50))

            await lab.until(told, "the import error is in the logs")
            client = await lab.reach(sandbox_id)
            assert any("no_such_module" in line for line in (await client.call("log"))["lines"])
            await client.close()
        finally:
            await runtime.stop(handle)

    asyncio.run(main())


async def _collect(runtime: DockerRuntime, events: asyncio.Queue[RuntimeEvent]) -> None:
    async for event in runtime.watch():
        events.put_nowait(event)
