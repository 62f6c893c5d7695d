"""Processor sharing: what a token costs, and what abort, weights and death do to a request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.engines.base import SamplingParams
from roll_core.errors import EngineDead
from roll_core.rollout.clock import now_s
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import EngineModel, SimulatedEngine
from roll_core.types import Generation, Weights

PARAMS = SamplingParams(max_tokens=1 << 30)


def engine(slots: int = 64, a_s: float = 0.01, c_s: float = 0.001, load_s: float = 0.0) -> SimulatedEngine:
    """The first token of a prompt is the length of the answer."""
    return SimulatedEngine(EngineModel(a_s, c_s, slots, load_s=load_s), lambda prompt, params: prompt[0])


def play(main: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(main)


def test_a_token_takes_a_plus_c_times_the_batch() -> None:
    async def main() -> None:
        e = engine()
        await e.start()
        await asyncio.gather(e.generate("a", [100], PARAMS), e.generate("b", [200], PARAMS))
        assert now_s() == pytest.approx(100 * 0.012 + 100 * 0.011)
        assert e.stats().generated_tokens in (299, 300)

    play(main())


def test_what_finds_no_slot_waits_in_order() -> None:
    async def main() -> None:
        e = engine(slots=1)
        await e.start()
        ended: list[str] = []

        async def one(name: str, length: int) -> None:
            await e.generate(name, [length], PARAMS)
            ended.append(name)

        jobs = asyncio.gather(one("long", 500), one("first", 10), one("second", 1))
        await asyncio.sleep(0.1)
        assert (e.stats().running, e.stats().waiting) == (1, 2)
        await jobs
        assert ended == ["long", "first", "second"]
        assert now_s() == pytest.approx(511 * 0.011)

    play(main())


def test_an_aborted_request_returns_what_it_had() -> None:
    async def main() -> None:
        e = engine()
        await e.start()
        request = asyncio.ensure_future(e.generate("a", [1000], PARAMS))
        await asyncio.sleep(1.1)
        await e.abort("a")
        generation: Generation = await request
        assert generation.finish_reason == "abort"
        assert len(generation.token_ids) == 99 or len(generation.token_ids) == 100
        assert len(generation.versions) == len(generation.logprobs) == len(generation.token_ids)

    play(main())


def test_weights_in_flight_leave_each_token_its_own_version() -> None:
    async def main() -> None:
        e = engine(load_s=5.0)
        await e.start()
        request = asyncio.ensure_future(e.generate("a", [200], PARAMS))
        await asyncio.sleep(1.1)
        await e.load_weights(Weights(1, {}))
        generation: Generation = await request
        assert now_s() == pytest.approx(200 * 0.011 + 5.0), "nothing is sampled while weights are loaded"
        assert len(generation.versions) == 200
        assert list(generation.versions) == sorted(generation.versions)
        assert set(generation.versions) == {0, 1}

    play(main())


def test_a_dead_engine_refuses_everybody() -> None:
    async def main() -> None:
        e = engine()
        await e.start()
        request = asyncio.ensure_future(e.generate("a", [200], PARAMS))
        await asyncio.sleep(0.5)
        e.die("test")
        with pytest.raises(EngineDead):
            await request
        with pytest.raises(EngineDead):
            await e.generate("b", [1], PARAMS)

    play(main())


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 3)), min_size=1, max_size=20), st.integers(1, 5))
@settings(max_examples=40)
def test_every_request_ends_once_with_its_length(requests: list[tuple[int, float]], slots: int) -> None:
    async def main() -> None:
        e = engine(slots=slots)
        await e.start()

        async def one(number: int, length: int, at_s: float) -> Generation:
            await asyncio.sleep(at_s)
            return await e.generate(str(number), [length], PARAMS)

        ended = await asyncio.gather(*(one(i, length, at_s) for i, (length, at_s) in enumerate(requests)))
        assert [len(g.token_ids) for g in ended] == [length for length, _ in requests]
        assert (e.stats().running, e.stats().waiting) == (0, 0)

    play(main())
