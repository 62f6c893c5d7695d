"""A full node serves waiting runs in turn, whatever they wait for; what is released leaves its place soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rock.domain.sandbox import SandboxState
from rock.wire.handle import token_sha256
from rock.wire.models import SandboxSpec, SandboxView

PLAIN = SandboxSpec(image="plain")
OTHER = SandboxSpec(image="other")
Make = Callable[..., Any]


async def claim(w: Any, run_id: str, spec: SandboxSpec = PLAIN) -> SandboxView:
    w.claimed += 1
    return await w.node.claim(
        spec, lease_id=f"ls-{w.claimed}", token_sha256=token_sha256("t"), epoch=1, run_id=run_id, wait_s=60
    )


def test_a_run_with_five_hundred_claims_does_not_starve_one_with_one(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=2, max_starting=2) as w:
            held = [await claim(w, "greedy") for _ in range(2)]
            served: list[str] = []

            async def one(run_id: str, spec: SandboxSpec) -> None:
                view = await claim(w, run_id, spec)
                served.append(run_id)
                await w.node.release(view.id, reason="done")

            greedy = [asyncio.create_task(one("greedy", PLAIN)) for _ in range(500)]
            await w.until(lambda: len(w.node._fleet._queue) == 500)
            modest = [asyncio.create_task(one("modest", spec)) for spec in (PLAIN, OTHER)]
            await asyncio.sleep(0)
            for view in held:
                await w.node.release(view.id, reason="done")
            await asyncio.wait_for(asyncio.gather(*modest), 30)
            # Two were on their way, or had just been served, when the second run came.
            assert len(served) <= 8
            for task in greedy:
                task.cancel()
            await asyncio.gather(*greedy, return_exceptions=True)

    asyncio.run(main())


def test_many_released_at_once_do_not_queue_behind_a_few(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=20, max_starting=20) as w:
            held = await asyncio.gather(*(claim(w, "r") for _ in range(20)))
            stopping, most = 0, 0
            stop = w.runtime.stop

            async def counted(handle: str) -> None:
                nonlocal stopping, most
                stopping += 1
                most = max(most, stopping)
                await stop(handle)
                stopping -= 1

            w.runtime.stop = counted
            w.runtime.faults.stop_delay_s = 0.1
            await asyncio.gather(*(w.node.release(view.id, reason="cancelled") for view in held))
            await w.until(lambda: w.node._fleet.counts().total() == 0)
            assert most == 16
            assert all(w.states(view.id)[-1] == SandboxState.GONE for view in held)

    asyncio.run(main())
