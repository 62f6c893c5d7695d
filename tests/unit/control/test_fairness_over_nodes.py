"""Two full nodes and a run that asks for everything: whoever waits on a node is served there in turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

Staging = Callable[..., AbstractAsyncContextManager[Any]]


def test_a_greedy_run_does_not_take_what_becomes_free_where_another_waits(stage: Staging) -> None:
    async def main() -> None:
        async with stage(capacity=2) as it:
            held = await asyncio.gather(*(it.lease(run_id="greedy") for _ in range(4)))
            served: Counter[tuple[str, str]] = Counter()

            async def one(run_id: str) -> int:
                """How many the greedy run had had, on the node where it was served."""
                lease = await it.lease(run_id=run_id, wait_s=60)
                node = lease.endpoint.node
                served[run_id, node] += 1
                before = served["greedy", node]
                await it.leases.release(lease.id)
                return before

            def waiting() -> int:
                return sum(len(node._fleet._queue) for node in it.nodes.values())

            greedy = [asyncio.create_task(one("greedy")) for _ in range(200)]
            await it.until(lambda: waiting() == 200)
            modest = [asyncio.create_task(one("modest")) for _ in range(2)]
            await it.until(lambda: waiting() == 202)
            for lease in held:
                await it.leases.release(lease.id)
            # Each node has two places: what was on its way to the greedy run when they became free may come first.
            assert max(await asyncio.gather(*modest)) <= 8
            for task in greedy:
                task.cancel()
            await asyncio.gather(*greedy, return_exceptions=True)

    asyncio.run(main())
