"""An engine behind the router dies: another takes its place, under the newest weights, and no token is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roll_core.engines.base import SamplingParams
from roll_core.engines.renewal import WINDOW_S, Renewal
from roll_core.engines.routed import Routed
from roll_core.engines.router import Router
from roll_core.errors import EngineDead
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import EngineModel, SimulatedEngine
from roll_core.simulation.tokens import SAMPLED_ID
from roll_core.types import Generation, Weights

PARAMS = SamplingParams(max_tokens=1 << 30)


def remaining(prompt: list[int], params: SamplingParams) -> int:
    return max(1, prompt[0] - sum(token == SAMPLED_ID for token in prompt[1:]))


class Fleet:
    """A router over simulated engines, which can be killed, and everything it was given in their place."""

    def __init__(self, count: int, *, slots: int = 4, restarts: int = 3, load_s: float = 0.0) -> None:
        self.model = EngineModel(0.01, 0.01, slots, load_s=load_s)
        self.renewal = Renewal(self._make, Weights(0, {}), restarts)
        self.made: list[tuple[int, int]] = []
        self.living = [SimulatedEngine(self.model, remaining) for _ in range(count)]
        self.router = Router(self.living, renewal=self.renewal)
        self.fault: Exception | None = None

    def _make(self, index: int, weights: Weights) -> SimulatedEngine:
        if self.fault is not None:
            raise self.fault
        self.made.append((index, weights.version))
        self.living[index] = SimulatedEngine(self.model, remaining, version=weights.version)
        return self.living[index]

    def ask(self, name: str, length: int) -> asyncio.Task[Generation]:
        return asyncio.ensure_future(self.router.generate(name, [length], PARAMS))


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - the clock is virtual
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a virtual clock nothing may wait for a real thread."""

    async def here(function, *args):
        return function(*args)

    monkeypatch.setattr(asyncio, "to_thread", here)


def test_the_only_engine_dies_and_its_requests_go_on_with_the_next() -> None:
    async def main() -> None:
        fleet = Fleet(1, slots=2)
        await fleet.router.start()
        jobs = [fleet.ask(str(i), 50) for i in range(5)]
        await asyncio.sleep(0.3)
        fleet.living[0].die("test")
        answers = await asyncio.gather(*jobs)
        assert [len(a.token_ids) for a in answers] == [50] * 5
        assert fleet.made == [(0, 0)]
        stats = fleet.router.stats()
        assert (stats.restarts, stats.running, stats.waiting, stats.slots) == (1, 0, 0, 2)

    run_virtual(main())


def test_who_comes_later_samples_with_the_newest_weights_even_if_they_change_while_it_starts() -> None:
    async def main() -> None:
        fleet = Fleet(2, load_s=1.0)
        await fleet.router.start()
        await fleet.router.load_weights(Weights(1, {}))
        job = fleet.ask("a", 100)
        await asyncio.sleep(0.1)
        fleet.living[0].die("test")
        await asyncio.sleep(0.05)
        await fleet.router.load_weights(Weights(2, {}))
        await until(lambda: fleet.router.stats().slots == 8)
        assert [s.version for s in fleet.router.members()] == [2, 2]
        assert len((await job).token_ids) == 100
        assert fleet.made == [(0, 1)]

    run_virtual(main())


def test_counters_never_go_back() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.router.start()
        await asyncio.gather(*(fleet.ask(str(i), 100) for i in range(8)))
        before = fleet.router.stats()
        fleet.living[1].die("test")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(fleet.ask(f"b{i}", 10_000) for i in range(8))), 1)
        after = fleet.router.stats()
        assert after.generated_tokens > before.generated_tokens >= 800
        assert after.busy_s >= before.busy_s
        assert len(fleet.router.members()) == 2

    run_virtual(main())


def test_too_many_deaths_end_in_engine_dead_for_all_who_wait() -> None:
    async def main() -> None:
        fleet = Fleet(1, slots=1, restarts=2)
        await fleet.router.start()
        jobs = [fleet.ask(str(i), 1000) for i in range(3)]
        for _ in range(3):
            await asyncio.sleep(0.5)
            fleet.living[0].die("test")
        ended = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(e) for e in ended] == [EngineDead] * 3
        assert len(fleet.made) == 2
        with pytest.raises(EngineDead):
            await fleet.router.load_weights(Weights(5, {}))

    run_virtual(main())


def test_deaths_far_apart_are_forgiven() -> None:
    async def main() -> None:
        fleet = Fleet(1, restarts=1)
        await fleet.router.start()
        for number in range(3):
            job = fleet.ask(str(number), 100)
            await asyncio.sleep(0.1)
            fleet.living[0].die("test")
            assert len((await job).token_ids) == 100
            await asyncio.sleep(WINDOW_S + 1)

    run_virtual(main())


def test_a_place_that_cannot_be_filled_again_says_why() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        await fleet.router.start()
        fleet.fault = MemoryError("no room on the device")
        job = fleet.ask("a", 100)
        await asyncio.sleep(0.1)
        fleet.living[0].die("test")
        with pytest.raises(EngineDead, match="no room on the device"):
            await job

    run_virtual(main())


@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=16),
    deaths=st.lists(st.tuples(st.floats(0.01, 1.5), st.integers(0, 2)), max_size=6),
    count=st.integers(1, 3),
    slots=st.integers(1, 3),
)
@settings(max_examples=60)
def test_whatever_dies_every_request_ends_with_all_its_tokens(lengths, deaths, count, slots) -> None:
    async def main() -> None:
        fleet = Fleet(count, slots=slots, restarts=100)
        await fleet.router.start()
        jobs = [fleet.ask(str(i), n) for i, n in enumerate(lengths)]
        for pause_s, index in deaths:
            await asyncio.sleep(pause_s)
            fleet.living[index % count].die("test")
        answers = await asyncio.gather(*jobs)
        assert [len(a.token_ids) for a in answers] == lengths
        await fleet.router.load_weights(Weights(1, {}))
        # Who died without anybody noticing is found out by the weights.
        await until(lambda: fleet.router.stats().slots == count * slots)
        assert [s.version for s in fleet.router.members()] == [1] * count

    run_virtual(main())


# --- what is kept of a request ---------------------------------------------------------------------------------------


def generation(*ids: int) -> Generation:
    return Generation(ids, tuple(-float(i) for i in ids), tuple(0 for _ in ids), "abort")


def test_what_a_dead_engine_had_sampled_is_not_sampled_again() -> None:
    request = Routed("a", "", [1, 2], SamplingParams(max_tokens=10, stop_token_ids=(9,), seed=7))
    assert request.keep(generation(3, 4, 5)) is None
    params, prompt = request.rest()
    assert (params.max_tokens, params.sampled, list(prompt)) == (7, 3, [1, 2, 3, 4, 5])
    assert request.keep(generation(6)) is None
    assert request.rest()[0].sampled == 4
    whole = request.joined(Generation((9,), (-1.0,), (1,), "stop"))
    assert whole == Generation((3, 4, 5, 6, 9), (-3.0, -4.0, -5.0, -6.0, -1.0), (0, 0, 0, 0, 1), "stop")


def test_an_answer_that_was_finished_but_not_delivered_is_the_answer() -> None:
    request = Routed("a", "", [1], SamplingParams(max_tokens=3, stop_token_ids=(9,)))
    assert request.keep(generation(4, 9)) == Generation((4, 9), (-4.0, -9.0), (0, 0), "stop")
    found = request.keep(generation(4, 5, 6))
    assert found is not None
    assert found.finish_reason == "length"
    assert request.keep(None) is None


def test_where_a_string_may_have_ended_the_answer_its_last_token_is_drawn_again() -> None:
    request = Routed("a", "", [1], SamplingParams(max_tokens=9, stop=("\n",)))
    assert request.keep(generation(4, 5)) is None
    assert request.rest()[1] == [1, 4]
