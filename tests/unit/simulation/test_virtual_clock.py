"""The virtual loop: time jumps, order is fixed, a hang is reported."""

from __future__ import annotations

import asyncio
import time

import pytest

from roll_core.simulation.clock import Deadlock, run_virtual


def test_an_hour_passes_at_once() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    begin = time.monotonic()
    assert run_virtual(main()) == pytest.approx(3600)
    assert time.monotonic() - begin < 30


def test_timers_fire_in_the_order_of_their_times() -> None:
    seen: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(100 - number)
        seen.append(number)

    async def main() -> None:
        await asyncio.gather(*(one(i) for i in range(100)))

    run_virtual(main())
    assert seen == list(reversed(range(100)))


def test_a_timeout_ends_a_wait_that_nothing_else_would_end() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(5)


def test_a_program_that_would_hang_is_reported() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(main())
