"""Processor, memory, processes and disk of real sandboxes, as the platform counts them; and the limit on the disk."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rock.wire.models import Limits, SandboxSpec, SandboxStats

MIB = 1 << 20


async def _stats(http: Any, sandbox_id: str) -> SandboxStats:
    return SandboxStats.model_validate((await http.get(f"/sandboxes/{sandbox_id}/stats")).json())


async def _exec(http: Any, sandbox_id: str, *argv: str) -> Any:
    return (await http.post(f"/sandboxes/{sandbox_id}/exec", json={"argv": argv, "timeout_s": 60})).json()


async def _takes_what_it_uses(stage: Any, spec: SandboxSpec) -> None:
    async with stage.platform() as (_, http):
        lease = await stage.lease(http, spec)
        before = await _stats(http, lease.sandbox_id)
        assert 0 < before.memory_bytes < before.memory_limit_bytes == spec.limits.memory_bytes
        burn = "import time\nwhile time.process_time() < 0.5: pass\nx = b'x' * (64 << 20)\nprint(1, flush=True)"
        busy = f'python3 -c "{burn}\ntime.sleep(99)" & sleep 99 & wait'
        work = asyncio.create_task(_exec(http, lease.sandbox_id, "sh", "-c", busy))

        async def seen() -> Any:
            now = await _stats(http, lease.sandbox_id)
            more = now.memory_bytes - before.memory_bytes > 60 * MIB and now.pids >= before.pids + 2
            return now if more and now.cpu_s - before.cpu_s >= 0.5 else None

        now = await stage.until(seen)
        assert now.disk_bytes is None
        await http.delete(f"/sandboxes/{lease.sandbox_id}")
        await work
        assert (await http.get(f"/sandboxes/{lease.sandbox_id}/stats")).status_code == 404


@pytest.mark.docker
def test_a_container_takes_what_it_uses(docker_base: str, on_docker: Any) -> None:
    asyncio.run(_takes_what_it_uses(on_docker, SandboxSpec(image=docker_base)))


@pytest.mark.bwrap
def test_a_sandbox_without_an_engine_takes_what_it_uses(on_bubblewrap: Any) -> None:
    asyncio.run(_takes_what_it_uses(on_bubblewrap, SandboxSpec(image="host")))


# 80 MiB in four files; the second way keeps them open and without a name.
_FILES = "for n in 1 2 3 4; do head -c 20971520 /dev/zero > /var/tmp/f$n; done; sleep 99"
_UNLINKED = (
    "exec 3> /var/tmp/a 4> /var/tmp/b 5> /var/tmp/c 6> /var/tmp/d; rm /var/tmp/?; "
    "for n in 3 4 5 6; do head -c 20971520 /dev/zero >&$n; done; sleep 99"
)
_ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what others keep open")


@pytest.mark.docker
@pytest.mark.parametrize("write", [_FILES, pytest.param(_UNLINKED, marks=_ROOT_ONLY)], ids=["named", "unlinked"])
def test_a_container_that_writes_beyond_its_limit_is_ended(docker_base: str, on_docker: Any, write: str) -> None:
    spec = SandboxSpec(image=docker_base, read_only=False, user="0:0", limits=Limits(disk_bytes=60 * MIB))

    async def main() -> None:
        async with on_docker.platform() as (_, http):
            lease, neighbour = await on_docker.lease(http, spec), await on_docker.lease(http, spec)
            upper = _upper(lease.sandbox_id)
            whole = await _exec(http, neighbour.sandbox_id, "sh", "-c", "ulimit -f")
            assert int(whole["stdout"]) * 512 == 60 * MIB, "no single file passes the limit between two looks"
            work = asyncio.create_task(_exec(http, lease.sandbox_id, "sh", "-c", write))
            view = await on_docker.failed(http, lease.sandbox_id)
            assert view.evidence.cause == "disk_quota"
            assert "limit of 60 MiB" in view.evidence.detail
            await work
            assert (await _exec(http, neighbour.sandbox_id, "echo", "well"))["stdout"] == "well\n"

            async def freed() -> bool:
                return not upper.exists()

            if upper.parent.exists():
                await on_docker.until(freed)

    asyncio.run(main())


def _upper(sandbox_id: str) -> Path:
    template = "{{.GraphDriver.Data.UpperDir}}"
    argv = ["docker", "inspect", "--format", template, f"rock-{sandbox_id}"]
    return Path(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip())
