"""Warm pools on a node: they grow with demand, keep to memory, replace what is stale, and give back what is fenced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from rock.domain.errors import InvalidRequest
from rock.domain.sandbox import SandboxState
from rock.domain.sizing import SizingPolicy
from rock.wire.models import SandboxSpec

PLAIN = SandboxSpec(image="plain")
TOY = SandboxSpec(image="toy", env="toy", entry="toy:Env")
Make = Callable[..., Any]


async def ready_ids(w: Any) -> set[str]:
    return {view.id for view in await w.node.sandboxes() if view.state is SandboxState.READY}


async def level(w: Any) -> int:
    return (await w.node.view()).pools[0].level


def test_a_pool_grows_with_demand_and_no_further_than_it_may(world: Make) -> None:
    async def main() -> None:
        async with world(crowded_at=2.0, refill_per_s=100.0) as w:
            await w.node.set_pool(PLAIN, 2, maximum=5)
            await w.ready(PLAIN, 2)
            for view in await asyncio.gather(*(w.claim() for _ in range(6))):
                await w.node.release(view.id, reason="done")
            await w.ready(PLAIN, 5)
            assert await level(w) == 5

    asyncio.run(main())


def test_a_machine_short_of_memory_keeps_no_more_than_is_configured(world: Make) -> None:
    async def main() -> None:
        async with world(crowded_at=0.0, refill_per_s=100.0) as w:
            await w.until(lambda: w.node._fleet.memory_share > 0)
            await w.node.set_pool(PLAIN, 1)
            for _ in range(8):
                await w.node.release((await w.claim()).id, reason="done")
            await w.ready(PLAIN, 1)
            assert await level(w) == 1

    asyncio.run(main())


def test_a_full_machine_starts_for_claims_only(world: Make) -> None:
    async def main() -> None:
        async with world(full_at=0.0) as w:
            await w.until(lambda: w.node._fleet.memory_share > 0)
            await w.node.set_pool(PLAIN, 2)
            assert (await w.claim()).state is SandboxState.LEASED
            assert w.runtime.starts == 1

    asyncio.run(main())


def test_an_idle_pool_keeps_its_minimum(world: Make) -> None:
    async def main() -> None:
        async with world(sizing=SizingPolicy(idle_after_s=0.3, spare_s=0.1, step_s=0.05)) as w:
            await w.node.set_pool(PLAIN, 3, minimum=1)
            await w.ready(PLAIN, 3)
            await w.ready(PLAIN, 1)

    asyncio.run(main())


def test_one_that_waited_too_long_is_replaced_before_it_goes(world: Make) -> None:
    async def main() -> None:
        async with world(max_ready_age_s=0.5) as w:
            await w.node.set_pool(PLAIN, 1)
            await w.ready(PLAIN, 1)
            [old] = await ready_ids(w)

            async def replaced() -> bool:
                ids = await ready_ids(w)
                assert ids, "never empty"
                return old not in ids

            await w.until(replaced)

    asyncio.run(main())


def test_what_waits_of_an_image_that_was_built_anew_is_replaced(world: Make) -> None:
    async def main() -> None:
        async with world(image_check_s=0.05) as w:
            w.runtime.image_versions["plain"] = "sha256:1"
            await w.node.set_pool(PLAIN, 2)
            await w.ready(PLAIN, 2)
            old, leased = await ready_ids(w), await w.claim()
            w.runtime.image_versions["plain"] = "sha256:2"

            async def replaced() -> bool:
                ids = await ready_ids(w)
                return len(ids) == 2 and not ids & old

            await w.until(replaced)
            assert (await w.node.sandbox(leased.id)).state is SandboxState.LEASED

    asyncio.run(main())


def test_refills_keep_to_their_rate(world: Make) -> None:
    async def main() -> None:
        async with world(refill_per_s=4.0, max_starting=4) as w:
            began = asyncio.get_running_loop().time()
            await w.node.set_pool(PLAIN, 8)
            await w.ready(PLAIN, 8)
            assert asyncio.get_running_loop().time() - began >= (8 - 4) / 4.0 - 0.05

    asyncio.run(main())


def test_fencing_ends_what_moved_or_ended_and_leaves_the_rest(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            kept, moved, ended = [await w.claim(TOY) for _ in range(3)]
            await w.node.set_pool(PLAIN, 1)
            await w.ready(PLAIN, 1)
            gone = await w.node.fence({kept.lease_id: 1, moved.lease_id: 2})
            assert set(gone) == {moved.id, ended.id}
            assert await w.node.fence({kept.lease_id: 1, moved.lease_id: 2}) == []
            assert (await w.node.sandbox(kept.id)).state is SandboxState.LEASED
            assert len(await ready_ids(w)) == 1
            for view in (moved, ended):
                await w.until(lambda sandbox=view.id: w.states(sandbox)[-2:] == ["released", "gone"])

    asyncio.run(main())


def test_a_view_tells_what_is_starting_waiting_and_how_pressed_the_machine_is(world: Make) -> None:
    async def main() -> None:
        async with world(max_starting=2, capacity=8) as w:
            w.runtime.faults.start_delay_s = 0.5
            claims = [asyncio.create_task(w.claim()) for _ in range(3)]
            await w.until(lambda: w.runtime.starts == 2)
            view = await w.node.view()
            assert (view.starting, view.max_starting, view.pools[0].waiting, view.pools[0].misses) == (2, 2, 3, 3)
            await w.until(lambda: w.node._fleet.memory_share > 0)
            pressure = (await w.node.view()).pressure
            assert pressure is not None
            assert pressure.memory == pytest.approx(psutil.virtual_memory().percent / 100, abs=0.2)
            w.runtime.faults.start_delay_s = 0.0
            await asyncio.gather(*claims)

    asyncio.run(main())


def test_a_minimum_that_cannot_fit_is_refused(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=3) as w:
            with pytest.raises(InvalidRequest, match="a pool of 4 does not fit"):
                await w.node.set_pool(PLAIN, 1, minimum=4)

    asyncio.run(main())
