"""Real containers lost under an episode: the trace is that of an undisturbed one, and nothing is left of the lost."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rock.runtimes.bundles import EnvCatalog
from rock.sdk import EnvSession
from tests.integration.platform.containers import docker, left_of, remove

pytestmark = pytest.mark.docker

STEPS = 12
DISTURBED_AFTER = 6


async def pause(env: EnvSession) -> None:
    await docker("pause", f"rock-{env.sandbox_id}")


async def kill_the_environment(env: EnvSession) -> None:
    """Its process alone: the child of the guest, which is the child of the container's init."""
    listing = await docker("top", f"rock-{env.sandbox_id}", "-eo", "pid,ppid,args")
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    guests = [row for row in rows if "guest.pyz" in row[2]]
    (child,) = [pid for pid, ppid, _ in guests if ppid in {row[0] for row in guests[1:]}] or [guests[-1][0]]
    await asyncio.to_thread(subprocess.run, ["kill", "-9", child], check=True)


@pytest.fixture
def counter(on_docker: Any, docker_base: str) -> EnvCatalog:
    catalog: EnvCatalog = on_docker.built("counter")
    return catalog


async def trace(env: EnvSession, disturb: Callable[[EnvSession], Awaitable[None]] | None) -> list[Any]:
    seen: list[Any] = [await env.reset()]
    for number in range(STEPS):
        if disturb is not None and number == DISTURBED_AFTER:
            await disturb(env)
        seen.append(await env.step("inc" if number % 3 else "dance"))
    return [*seen, await env.call("state")]


@pytest.mark.parametrize("disturb", [remove, pause, kill_the_environment])
def test_the_trace_after_a_loss_is_that_of_an_undisturbed_episode(
    counter: EnvCatalog, on_docker: Any, disturb: Callable[[EnvSession], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with on_docker.served(counter) as rock:
            async with rock.env("counter", task="to-21", seed=4, options={"a": 1}) as env:
                undisturbed = await trace(env, None)
            async with rock.env("counter", task="to-21", seed=4, options={"a": 1}) as env:
                first = env.sandbox_id
                assert await trace(env, disturb) == undisturbed

                async def recovered() -> bool:
                    return bool(env.recoveries)

                # A paused container that is killed is thawed for it, and may yet answer a step or two: no harm done.
                await on_docker.until(recovered)
                assert [report.verdict for report in env.recoveries] == ["resumed"]
                assert env.recoveries[0].steps >= DISTURBED_AFTER

                async def first_is_gone() -> bool:
                    return first not in {view.id for view in await rock.sandboxes()}

                await on_docker.until(first_is_gone)
        assert await left_of(on_docker.home) == ""

    asyncio.run(main())


def test_a_cancelled_episode_gives_its_sandbox_back_at_once_whatever_runs_in_it(
    counter: EnvCatalog, on_docker: Any
) -> None:
    async def main() -> None:
        async with on_docker.served(counter) as rock:
            held: list[str] = []
            stepping = asyncio.Event()

            async def episode() -> None:
                async with rock.env("counter", task="to-21") as env:
                    await env.reset()
                    held.append(env.sandbox_id)
                    stepping.set()
                    await env.step("sleep 30")

            task = asyncio.create_task(episode())
            await stepping.wait()
            await asyncio.wait({task}, timeout=0.2)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1.0
            assert await rock.leases() == []
            assert held[0] not in {view.id for view in await rock.sandboxes(state="leased")}

            async def gone() -> bool:
                return held[0] not in await docker("ps", "-a", "--format", "{{.Names}}")

            await on_docker.until(gone)

    asyncio.run(main())
