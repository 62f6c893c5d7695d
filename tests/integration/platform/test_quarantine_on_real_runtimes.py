"""A crash-looping environment in real sandboxes: refused with its last words, others unaffected, well once cleared."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from rock.wire.models import Limits, SandboxSpec

BROKEN = "import os\nprint('no licence found', flush=True)\nos._exit(7)\n"
WELL = """
class Env:
    def reset(self, task, seed, options):
        return "well", {}

    def step(self, action):
        return "done", 1.0, True, False, {}

    def close(self):
        pass
"""


async def refused(http: httpx.AsyncClient, spec: SandboxSpec) -> dict[str, Any]:
    """The problem that a claim of it ends with."""
    response = await http.post("/leases", json={"spec": spec.model_dump(mode="json"), "wait_s": 80})
    problem: dict[str, Any] = response.json()
    assert response.status_code == 409, problem
    assert problem["type"] == "urn:rock:quarantined"
    return problem


@pytest.mark.docker
def test_an_image_whose_environment_exits_at_once_on_docker(docker_base: str, on_docker: Any, tmp_path: Path) -> None:
    from rock.runtimes.images import build_image

    tag = f"rock-test-{on_docker.home.name.lower()}:1"
    spec = SandboxSpec(image=tag, env="looping", entry="looping:Env", python_path=("/opt/looping",))

    def build(source: str) -> None:
        (tmp_path / "looping.py").write_text(source)
        (tmp_path / "Dockerfile").write_text(f"FROM {docker_base}\nCOPY looping.py /opt/looping/looping.py\n")
        build_image(tag, tmp_path)

    async def main() -> None:
        async with on_docker.platform() as (_, http):
            problem = await refused(http, spec)
            assert "environment 'looping' is in quarantine" in problem["detail"]
            assert spec.digest in problem["hint"]
            [view] = (await http.get("/quarantine")).json()
            assert (view["kind"], view["subject"], view["failures"]) == ("image", spec.digest, 4)
            assert await on_docker.lease(http, SandboxSpec(image=docker_base))

            await asyncio.to_thread(build, WELL)
            assert (await refused(http, spec))["fault"] == "environment"
            assert (await http.delete(f"/quarantine/{spec.digest}")).status_code == 204
            assert await on_docker.lease(http, spec)
            assert (await http.get("/quarantine")).json() == []

    try:
        build(BROKEN)
        asyncio.run(main())
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, check=False)


@pytest.mark.bwrap
def test_an_environment_that_aborts_on_bubblewrap_is_still_refused_after_a_restart(on_bubblewrap: Any) -> None:
    spec = SandboxSpec(image="host", env="aborting", entry="os:abort", limits=Limits(memory_bytes=256 << 20))

    async def main() -> None:
        async with on_bubblewrap.platform() as (platform, http):
            await refused(http, spec)
            assert await on_bubblewrap.lease(http, SandboxSpec(image="host"))
            await platform.control.quarantine.reconcile()
        async with on_bubblewrap.platform() as (_, http):
            assert "aborting" in (await refused(http, spec))["detail"]
            assert (await http.delete(f"/quarantine/{spec.digest}")).status_code == 204
            assert (await http.delete(f"/quarantine/{spec.digest}")).status_code == 404
            events = (await http.get("/events", params={"limit": 1000})).json()
            kinds = [event["kind"] for event in events if event["kind"].startswith("quarantine.")]
            assert kinds == ["quarantine.cleared", "quarantine.added"]

    asyncio.run(main())
