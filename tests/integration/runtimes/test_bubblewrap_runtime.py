"""The bubblewrap runtime for real: walls, limits, adoption by a second platform process, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.domain import errors
from rock.domain.errors import ImageNotFound, SandboxLost
from rock.runtimes.bubblewrap import BubblewrapRuntime
from rock.runtimes.bundles import EnvCatalog
from rock.wire.models import Limits, SandboxSpec

pytestmark = pytest.mark.bwrap

HOST = SandboxSpec(image="host", limits=Limits(memory_bytes=256 << 20, pids=40, tmpfs_bytes=4 << 20, open_files=200))


def first_process(home: Path, sandbox_id: str) -> int:
    line = (home / "bwrap" / sandbox_id / "status").read_text().splitlines()[0]
    return int(json.loads(line)["child-pid"])


def guest_users(home: Path, sandbox_id: str) -> list[tuple[int, int]]:
    """(pid, user), in the host's numbers, of the processes below the sandbox's first."""
    first = psutil.Process(first_process(home, sandbox_id))
    found = [(child.pid, child.uids().real) for child in first.children(recursive=True)]
    assert found
    return found


def test_a_sandbox_starts_answers_and_leaves_nothing(lab: Any, instance: str) -> None:
    async def main() -> None:
        home = lab.directory / "home"
        runtime = BubblewrapRuntime(instance, home)
        assert (await runtime.check()).ok
        async with lab.sandbox(runtime, HOST) as (sandbox_id, handle, client):
            assert (await client.call("hello"))["env"] == "none"
            (seen,) = await runtime.list_owned()
            assert (seen.sandbox_id, seen.handle, seen.running) == (sandbox_id, handle, True)
            assert seen.spec_digest == HOST.digest
            assert await BubblewrapRuntime("another", home).list_owned() == []
            pid = first_process(home, sandbox_id)
        assert not Path(f"/proc/{pid}").exists()
        assert await runtime.inspect(handle) is None
        assert os.listdir(home / "bwrap") == []
        await runtime.stop(handle)  # again: no error

    asyncio.run(main())


def test_the_walls_hold_seen_from_inside(lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = BubblewrapRuntime(instance, lab.directory / "home")
        async with lab.sandbox(runtime, HOST) as (sandbox_id, _, client):
            status = await lab.run(client, "cat", "/proc/self/status")
            fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
            assert fields["NoNewPrivs"] == "1"
            assert (await lab.run(client, "id", "-u")).strip() == "65534"
            for path in ("/x", "/usr/x", "/etc/x", "/dev/x"):
                assert "Read-only file system" in await lab.run(client, "touch", path), path
            # Only opened, never written: if this wall fell, the test itself would change the host.
            for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"):
                opened = await lab.run(client, "python3", "-c", f"import os; os.open({path!r}, os.O_WRONLY)")
                assert "Permission denied" in opened or "Read-only" in opened or "No such file" in opened, path
            for _, user in guest_users(lab.directory / "home", sandbox_id):
                assert user != 0  # the host's number, which is what the kernel judges by
            for place in ("/tmp/big", "/dev/shm/big"):
                filled = await lab.run(client, "dd", "if=/dev/zero", f"of={place}", "bs=1M", "count=8")
                assert "No space left" in filled
            assert (await lab.run(client, "ls", "/sys/class/net")).startswith("ls: cannot access")
            connect = "import socket; socket.create_connection(('169.254.169.254', 80), 2)"
            assert "unreachable" in await lab.run(client, "python3", "-c", connect)
            processes = [name for name in (await lab.run(client, "ls", "/proc")).split() if name.isdigit()]
            assert len(processes) < 10
            assert (await lab.run(client, "sh", "-c", "ulimit -n; ulimit -c")).split() == ["200", "0"]
            assert "No such file" in await lab.run(client, "cat", "/etc/shadow")

    asyncio.run(main())


def test_the_counter_is_played_from_its_bundle(lab: Any, instance: str, counter_catalog: EnvCatalog) -> None:
    async def main() -> None:
        runtime = BubblewrapRuntime(instance, counter_catalog.root.parent)
        spec = counter_catalog.spec("counter")
        await runtime.ensure_image(spec.image)
        async with lab.sandbox(runtime, spec) as (_, _, client):
            first = await client.call("env.reset", seq=0, task="to-2", seed=7, options={})
            assert first == {"observation": "Count! 0 of 2", "info": {"seed": 7, "options": {}}}
            with pytest.raises((errors.EnvironmentError, SandboxLost)):  # MemoryError where limits are per process
                await client.call("env.step", seq=1, action="alloc 2000", timeout_s=30.0)
            assert (await client.call("env.reset", seq=0, task="to-1", seed=1, options={}))["observation"]

    asyncio.run(main())


def test_a_sandbox_outlives_its_platform_and_is_adopted(lab: Any, instance: str) -> None:
    async def main() -> None:
        home, sandbox_id = lab.directory / "home", lab.new_id()
        first = BubblewrapRuntime(instance, home)
        await first.start(sandbox_id, HOST, lab.directory / sandbox_id)
        client = await lab.reach(sandbox_id)
        await first.close()
        second = BubblewrapRuntime(instance, home)
        (seen,) = await second.list_owned()
        assert (seen.sandbox_id, seen.running) == (sandbox_id, True)
        await client.call("ping")
        await second.stop(seen.handle)
        assert await second.list_owned() == []
        await client.wait_closed()

    asyncio.run(main())


def test_a_death_is_told(lab: Any, instance: str) -> None:
    async def main() -> None:
        home = lab.directory / "home"
        runtime = BubblewrapRuntime(instance, home)
        async with lab.sandbox(runtime, HOST) as (sandbox_id, handle, _):
            events = runtime.watch()
            os.kill(first_process(home, sandbox_id), signal.SIGKILL)
            event = await asyncio.wait_for(anext(events), 10.0)
            assert (event.sandbox_id, event.kind) == (sandbox_id, "died")
            seen = await runtime.inspect(handle)
            assert seen is not None
            assert not seen.running

    asyncio.run(main())


def test_a_recycled_pid_is_never_killed(lab: Any, instance: str) -> None:
    async def main() -> None:
        home = lab.directory / "home"
        runtime = BubblewrapRuntime(instance, home)
        bystander = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            folder = home / "bwrap" / "sb-0000000000"
            folder.mkdir(parents=True)
            record = {"sandbox_id": "sb-0000000000", "instance": instance, "spec_digest": "x"}
            (folder / "record.json").write_text(json.dumps(record))
            (folder / "status").write_text(json.dumps({"child-pid": bystander.pid}) + "\n")
            (seen,) = await runtime.list_owned()
            assert not seen.running
            await runtime.stop(seen.handle)
            assert await runtime.list_owned() == []
            assert bystander.returncode is None
            os.kill(bystander.pid, 0)
        finally:
            bystander.kill()
            await bystander.wait()

    asyncio.run(main())


def test_an_unknown_image_says_what_to_do(lab: Any, instance: str) -> None:
    async def main() -> None:
        runtime = BubblewrapRuntime(instance, lab.directory / "home")
        with pytest.raises(ImageNotFound, match="rock env build thing"):
            await runtime.ensure_image("rock-env-thing:abc")
        with pytest.raises(ImageNotFound, match="'host'"):
            await runtime.ensure_image("python:3.11")

    asyncio.run(main())
