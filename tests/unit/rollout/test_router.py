"""Several engines as one: where requests go, how they move, and what a death costs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.engines.base import SamplingParams
from roll_core.engines.router import Router
from roll_core.errors import EngineDead
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import EngineModel, SimulatedEngine
from roll_core.simulation.tokens import SAMPLED_ID
from roll_core.types import Weights

PARAMS = SamplingParams(max_tokens=1 << 30)


def remaining(prompt: list[int], params: SamplingParams) -> int:
    """The first token of a prompt is the length of the answer; what was sampled elsewhere stands at its end."""
    return max(1, prompt[0] - sum(token == SAMPLED_ID for token in prompt[1:]))


def engines(count: int, slots: int = 8, load_s: float = 0.0) -> list[SimulatedEngine]:
    return [SimulatedEngine(EngineModel(0.01, 0.01, slots, load_s=load_s), remaining) for _ in range(count)]


def play(main: Coroutine[Any, Any, Any]) -> None:
    run_virtual(main)


def test_candidates_of_a_prompt_are_spread_and_pinned_ones_are_not() -> None:
    async def main(replicate: bool) -> list[int]:
        members = engines(4)
        router = Router(members, replicate=replicate)
        await router.start()
        jobs = [asyncio.ensure_future(router.generate(str(i), [100, 7], PARAMS)) for i in range(8)]
        await asyncio.sleep(0.1)
        running = [e.stats().running for e in members]
        await asyncio.gather(*jobs)
        return running

    assert run_virtual(main(True)) == [2, 2, 2, 2]
    assert run_virtual(main(False)) == [8, 0, 0, 0]


def test_who_waits_is_taken_by_the_first_engine_with_room() -> None:
    async def main() -> None:
        members = engines(2, slots=1)
        router = Router(members, balance=False)
        await router.start()
        jobs = [asyncio.ensure_future(router.generate(str(n), [n], PARAMS)) for n in (1000, 10, 20)]
        await asyncio.sleep(0.05)
        assert router.stats().waiting == 1
        assert [e.stats().waiting for e in members] == [0, 0], "nothing is bound to an engine before it has room"
        await jobs[2]
        assert not jobs[0].done()
        await jobs[0]

    play(main())


def test_a_session_goes_back_to_the_engine_that_knows_it() -> None:
    async def main() -> None:
        members = engines(3)
        router = Router(members)
        await router.start()
        other = asyncio.ensure_future(router.generate("x", [1000], PARAMS))
        await asyncio.sleep(0)
        await router.generate("a/0", [10], PARAMS, session="a")
        home = router._home["a"]
        await router.generate("a/1", [10], PARAMS, session="a")
        assert router._home["a"] == home
        router.release("a")
        assert "a" not in router._home
        await other

    play(main())


def test_in_the_tail_the_longest_moves_to_an_engine_that_has_emptied() -> None:
    async def main() -> None:
        members = engines(2, slots=8)
        router = Router(members)
        await router.start()
        lengths = [2000, 1] * 8  # every second one ends at once: the second engine is empty then
        jobs = [asyncio.ensure_future(router.generate(str(i), [n], PARAMS)) for i, n in enumerate(lengths)]
        ended = await asyncio.gather(*jobs)
        assert [len(g.token_ids) for g in ended] == lengths, "with all the tokens of both engines, and no more"
        assert all(len(g.versions) == len(g.logprobs) == len(g.token_ids) for g in ended)
        assert {g.finish_reason for g in ended} == {"stop"}
        assert min(e.stats().generated_tokens for e in members) > 1000

    play(main())


def test_an_engine_that_dies_takes_no_request_with_it() -> None:
    async def main() -> None:
        members = engines(2)
        router = Router(members)
        await router.start()
        jobs = [asyncio.ensure_future(router.generate(str(i), [100], PARAMS)) for i in range(6)]
        await asyncio.sleep(0.5)
        members[0].die("test")
        assert [len(g.token_ids) for g in await asyncio.gather(*jobs)] == [100] * 6
        await router.load_weights(Weights(1, {}))
        assert router.stats().version == 1
        members[1].die("test")
        with pytest.raises(EngineDead):
            await router.generate("late", [1], PARAMS)

    play(main())


def test_an_abort_ends_a_request_wherever_it_is() -> None:
    async def main() -> None:
        router = Router(engines(1, slots=1))
        await router.start()
        running, waiting = (asyncio.ensure_future(router.generate(n, [1000], PARAMS)) for n in ("run", "wait"))
        await asyncio.sleep(1)
        await router.abort("wait")
        await router.abort("run")
        await router.abort("unknown")
        assert (await waiting).token_ids == ()
        assert len((await running).token_ids) > 10
        assert (router.stats().running, router.stats().waiting) == (0, 0)

    play(main())


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(0, 2), st.booleans()), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=40)
def test_every_request_ends_and_nothing_is_left_behind(requests, count, slots, replicate) -> None:
    async def main() -> None:
        members = engines(count, slots)
        router = Router(members, replicate=replicate)
        await router.start()

        async def one(number: int, length: int, at_s: float, cancel: bool) -> None:
            await asyncio.sleep(at_s)
            request = asyncio.ensure_future(router.generate(str(number), [length], PARAMS))
            if cancel:
                await asyncio.sleep(0.2)
                request.cancel()
                await asyncio.wait([request])
            else:
                assert len((await request).token_ids) == length

        await asyncio.gather(*(one(i, *request) for i, request in enumerate(requests)))
        stats = router.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert all(place.load == 0 for place in router._places)

    play(main())
