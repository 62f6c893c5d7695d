"""Claims: from the warm pool at once, else in line for the next one; said plainly when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    PlatformUnavailable,
    RuntimeUnavailable,
)
from rock.domain.sandbox import SandboxState
from rock.wire.guest_client import GuestClient
from rock.wire.models import ExecRequest, SandboxSpec

PLAIN = SandboxSpec(image="plain")
OTHER = SandboxSpec(image="other")
TOY = SandboxSpec(image="toy", env="toy", entry="toy:Env")
Make = Callable[..., Any]


def test_a_miss_starts_one_and_its_guest_answers(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(TOY)
            assert view.state is SandboxState.LEASED
            assert view.lease_id == "ls-1"
            async with await GuestClient.connect_unix(w.node.endpoint(view.id).socket_path) as guest:
                assert (await guest.call("hello"))["epoch"] == 1
                assert "step 0" in (await guest.call("env.reset", seq=0, task="3", seed=1, options={}))["observation"]
            assert w.states(view.id) == ["starting", "ready", "leased"]

    asyncio.run(main())


def test_a_warm_pool_serves_at_once_and_is_filled_again(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            await w.node.set_pool(PLAIN, 3)
            await w.ready(PLAIN, 3)
            w.runtime.faults.start_delay_s = 0.5
            views = [await w.claim(wait_s=0) for _ in range(3)]
            assert len({view.id for view in views}) == 3
            w.runtime.faults.start_delay_s = 0
            await w.until(lambda: w.runtime.starts >= 6)
            pool = (await w.node.view()).pools[0]
            assert (pool.claims, pool.misses) == (3, 0)

    asyncio.run(main())


def test_a_sandbox_is_used_once(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            first = await w.claim()
            await w.node.release(first.id, reason="test")
            await w.node.release(first.id, reason="test")  # idempotent
            assert (await w.claim()).id != first.id
            await w.until(lambda: w.states(first.id)[-2:] == ["released", "gone"])
            assert not w.config.run_dir.joinpath(first.id).exists()
            with pytest.raises(NotFound):
                await w.node.sandbox(first.id)

    asyncio.run(main())


def test_claims_that_wait_are_served_in_the_order_they_came(world: Make) -> None:
    async def main() -> None:
        async with world(max_starting=1, capacity=10) as w:
            w.runtime.faults.start_delay_s = 0.02
            order: list[int] = []

            async def one(number: int) -> None:
                await w.claim()
                order.append(number)

            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(one(number)))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            assert order == list(range(6))

    asyncio.run(main())


def test_starts_never_exceed_the_cap(world: Make) -> None:
    async def main() -> None:
        async with world(max_starting=2) as w:
            w.runtime.faults.start_delay_s = 0.02
            most = 0

            def watch(_: Any) -> None:
                nonlocal most
                most = max(most, w.node._fleet.counts()[SandboxState.STARTING])

            w.node.on_change(watch)
            await asyncio.gather(*(w.claim() for _ in range(8)))
            assert most == 2

    asyncio.run(main())


def test_a_full_node_says_so_and_serves_when_one_is_released(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=2) as w:
            held = [await w.claim(), await w.claim()]
            with pytest.raises(CapacityExceeded, match=r"within 0\.05 s: 0 starting.*has 2 of at most 2"):
                await w.claim(wait_s=0.05)
            waiting = asyncio.create_task(w.claim())
            await asyncio.sleep(0)
            await w.node.release(held[0].id, reason="test")
            assert (await waiting).state is SandboxState.LEASED

    asyncio.run(main())


def test_a_full_node_gives_up_an_idle_sandbox_of_another_pool_for_a_claim(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=2) as w:
            await w.node.set_pool(PLAIN, 2)
            await w.ready(PLAIN, 2)
            assert (await w.claim(OTHER)).spec == OTHER

    asyncio.run(main())


def test_an_image_that_does_not_exist_fails_the_claim_at_once(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.missing_images.add("plain")
            for _ in range(2):
                began = asyncio.get_running_loop().time()
                with pytest.raises(ImageNotFound, match="plain"):
                    await w.claim(wait_s=30)
                assert asyncio.get_running_loop().time() - began < 2
            w.runtime.faults.missing_images.clear()
            assert await w.claim(wait_s=2)

    asyncio.run(main())


def test_what_always_dies_at_the_start_is_told_with_its_cause_and_does_not_spin(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.dies_at_start = True
            w.runtime.faults.exit_code = 7
            with pytest.raises(CapacityExceeded, match=r"\d+ failed in a row") as caught:
                await w.claim(wait_s=2.5)
            assert "ended before its guest answered" in caught.value.hint
            assert 1 <= w.runtime.starts <= 4
            failed = next(view for view in w.changes if view.state is SandboxState.FAILED)
            assert failed.evidence is not None
            assert failed.evidence.exit_code == 7

    asyncio.run(main())


def test_a_pool_whose_starts_fail_backs_off_and_recovers(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.fail_next_starts = 4
            await w.node.set_pool(PLAIN, 2)
            await w.ready(PLAIN, 2)
            assert w.runtime.starts == 6

    asyncio.run(main())


def test_a_runtime_that_is_down_is_named_when_the_wait_is_over(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.start_error = "the daemon is gone"
            with pytest.raises(RuntimeUnavailable, match="the daemon is gone"):
                await w.claim(wait_s=0.3)
            w.runtime.faults.start_error = ""
            assert await w.claim(wait_s=3)

    asyncio.run(main())


def test_a_guest_that_never_answers_is_a_start_timeout(world: Make) -> None:
    async def main() -> None:
        async with world(start_timeout_s=0.1) as w:
            w.runtime.faults.never_listens = True
            with pytest.raises(CapacityExceeded, match=r"[12] failed in a row"):
                await w.claim(wait_s=0.2)
            failed = next(view for view in w.changes if view.state is SandboxState.FAILED)
            assert failed.evidence is not None
            assert failed.evidence.cause == "start_timeout"
            await w.until(lambda: failed.id not in {r.id for r in w.node._fleet.records.values()})

    asyncio.run(main())


def test_a_cancelled_claim_leaves_nothing_leased(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.start_delay_s = 0.05
            claims = [asyncio.create_task(w.claim()) for _ in range(5)]
            await w.until(lambda: w.runtime.starts >= 2)
            for claim in claims:
                claim.cancel()
            await asyncio.gather(*claims, return_exceptions=True)
            w.runtime.faults.start_delay_s = 0

            async def all_gone() -> bool:
                return not await w.node.sandboxes()

            await w.until(all_gone)

    asyncio.run(main())


def test_claims_that_wait_hear_of_the_shutdown(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=1) as w:
            await w.claim()
            waiting = asyncio.create_task(w.claim(wait_s=60))
            await asyncio.sleep(0)
            w.node.refuse_claims()
            with pytest.raises(PlatformUnavailable, match="shutting down"):
                await waiting
            with pytest.raises(PlatformUnavailable):
                await w.claim()

    asyncio.run(main())


def test_commands_run_in_leased_sandboxes_only(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            result = await w.node.exec(view.id, ExecRequest(argv=("echo", "hello")))
            assert (result.exit_code, result.stdout) == (0, "hello\n")
            await w.node.set_pool(PLAIN, 1)
            await w.ready(PLAIN, 1)
            idle = next(v for v in await w.node.sandboxes() if v.state is SandboxState.READY)
            with pytest.raises(Conflict, match="not leased"):
                await w.node.exec(idle.id, ExecRequest(argv=("true",)))
            assert isinstance(await w.node.logs(view.id, 10), list)

    asyncio.run(main())


def test_a_pool_that_cannot_fit_is_refused(world: Make) -> None:
    async def main() -> None:
        async with world(capacity=3) as w:
            with pytest.raises(InvalidRequest, match="does not fit"):
                await w.node.set_pool(PLAIN, 4)

    asyncio.run(main())
