"""Real containers whose files are kept: lost in mid-episode, the episode goes on from them; no image is left behind."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rock.cluster.local import Platform
from rock.cluster.settings import PlatformSettings, instance_of
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker import LABEL_SNAPSHOT
from rock.sdk import EnvSession
from rock.wire.models import SNAPSHOT_PREFIX, LeaseRequest, SnapshotRequest
from tests.integration.platform.containers import docker, remove

STEPS = 8
DISTURBED_AFTER = 5


async def kill_9(env: EnvSession) -> None:
    pid = (await docker("inspect", "-f", "{{.State.Pid}}", f"rock-{env.sandbox_id}")).strip()
    first = psutil.Process(int(pid))
    doomed = [first, *first.children(recursive=True)]
    await asyncio.to_thread(subprocess.run, ["kill", "-9", pid], check=True)
    # The kernel ends the others after the first: until then the environment may take one more step.
    await asyncio.to_thread(psutil.wait_procs, doomed, 30)


async def nothing(env: EnvSession) -> None:
    pass


Disturb = Callable[[EnvSession], Awaitable[None]]


async def images(home: Path) -> list[str]:
    """Of this home's instance, the snapshots there are."""
    filters = ["--filter", f"label={LABEL_SNAPSHOT}", "--filter", f"label=rock.instance={instance_of(home)}"]
    return (await docker("images", "-a", "-q", *filters)).split()


@pytest.fixture
def ledger(on_docker: Any, docker_base: str) -> EnvCatalog:
    catalog: EnvCatalog = on_docker.built("ledger")
    return catalog


async def trace(env: EnvSession, disturb: Disturb) -> list[Any]:
    seen: list[Any] = [await env.reset()]
    for number in range(1, STEPS + 1):
        seen.append(await env.step(str(number * number)))
        if number == DISTURBED_AFTER:
            await disturb(env)
    return [*seen, await env.call("entries")]


@pytest.mark.docker
@pytest.mark.parametrize("disturb", [kill_9, remove])
def test_the_trace_after_a_loss_is_that_of_an_undisturbed_episode(
    ledger: EnvCatalog, on_docker: Any, disturb: Disturb
) -> None:
    async def main() -> None:
        async with on_docker.served(ledger) as rock:
            async with rock.env("ledger", task="book-8", options={"plain": True}) as env:
                undisturbed = await trace(env, nothing)
            async with rock.env("ledger", task="book-8", options={"plain": True}) as env:
                first = env.sandbox_id
                assert await trace(env, disturb) == undisturbed
                assert env.sandbox_id != first
                (report,) = env.recoveries
                assert (report.verdict, report.from_step, report.steps) == ("resumed", 3, 2)
                assert env.lease.snapshot
                assert len(await images(on_docker.home)) <= 2  # what it stands on, and the latest

            async def gone() -> bool:
                return await images(on_docker.home) == []

            await on_docker.until(gone)

    asyncio.run(main())


@pytest.mark.docker
def test_what_replay_cannot_bring_back_a_snapshot_does_and_nothing_is_left_at_the_end(
    ledger: EnvCatalog, on_docker: Any
) -> None:
    async def main() -> None:
        async with on_docker.served(ledger) as rock, rock.env("ledger", task="book-50") as env:
            await env.reset()
            for number in range(1, 4):
                stamped = (await env.step(str(number))).observation
            await env.call("entries")  # waits until the snapshot after step 3 is there
            await remove(env)
            after = (await env.step("4")).observation
            assert stamped.partition(": ")[2] in after
            assert (env.recoveries[0].from_step, env.recoveries[0].steps) == (3, 0)
            assert len(await images(on_docker.home)) == 1
        # The platform was stopped while the lease was held: it takes everything of its own with it.
        assert await images(on_docker.home) == []

    asyncio.run(main())


@pytest.mark.docker
def test_snapshots_survive_a_restart_with_their_leases_and_are_swept_without(
    ledger: EnvCatalog, on_docker: Any
) -> None:
    async def main() -> None:
        settings = PlatformSettings(on_docker.home, runtime="docker")
        platform = await Platform.open(settings, catalog=ledger)
        leases = [await platform.control.leases.create(LeaseRequest(env="ledger", ttl_s=600)) for _ in range(2)]
        for lease in leases:
            await platform.control.leases.snapshots.take(lease.id, SnapshotRequest(epoch=1, number=1, step=1))
        assert len(await images(on_docker.home)) == 2
        await platform.close(keep_sandboxes=True)
        await docker("tag", f"{SNAPSHOT_PREFIX}{leases[0].id}-1-1", f"{SNAPSHOT_PREFIX}ls-nobody-1-1")
        platform = await Platform.open(settings, catalog=ledger)
        try:
            assert all(view.latest_snapshot for view in platform.control.leases.views())

            async def swept() -> bool:
                return "ls-nobody" not in await docker("images", "rock-snapshot")

            await on_docker.until(swept)
            assert len(await images(on_docker.home)) == 2
        finally:
            await platform.close()
        assert await images(on_docker.home) == []

    asyncio.run(main())


@pytest.mark.bwrap
def test_where_nothing_can_be_kept_the_episode_is_replayed_from_the_start(on_bubblewrap: Any) -> None:
    async def main() -> None:
        catalog = await asyncio.to_thread(on_bubblewrap.built, "ledger")
        async with (
            on_bubblewrap.served(catalog) as rock,
            rock.env("ledger", task="book-8", options={"plain": True}) as env,
        ):
            await env.reset()
            for number in range(1, 6):
                await env.step(str(number))
            shared = str(Path(env.lease.endpoint.socket_path).parent)
            processes = [p for p in psutil.process_iter(["cmdline"]) if shared in (p.info["cmdline"] or [])]
            processes[-1].kill()
            assert (await env.step("6")).observation.startswith("21 in 6 entries")
            assert (env.recoveries[0].from_step, env.recoveries[0].steps) == (0, 5)

    asyncio.run(main())
