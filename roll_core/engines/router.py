"""Several engines behind one :class:`~roll_core.engines.base.Engine`.

Each request goes to the engine with the least measured pressure, and no sooner than one has room: what waits, waits
here, where any engine that becomes free can take it. The candidates of one prompt are therefore spread over all engines
(*prompt replication*, ROLL Flash, arXiv 2510.11345; the groups reassemble them when they return), unless
``replicate`` is off. The requests of a session go back to the engine that holds its KV cache while it has room.

``balance`` [ours]: when nothing waits, the longest-running request of the fullest engine moves to one that has emptied,
with the tokens it has. In the tail of a batch a sequence's speed is set by its neighbours, and the longest decides.

Invariants: a request ends in one Generation or one error, wherever it was played; an engine that dies takes no request
with it while another lives; weights have reached every living engine when :meth:`Router.load_weights` returns.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from roll_core.engines.base import Engine, EngineStats, SamplingParams
from roll_core.errors import EngineDead
from roll_core.types import FinishReason, Generation, Weights

log = logging.getLogger(__name__)

BALANCE_GAP = 2
"""Difference in running requests from which a move pays: it costs reading the prompt again."""


@dataclass(slots=True)
class _Request:
    id: str
    session: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    parts: list[Generation] = field(default_factory=list)
    """What engines that it left behind had sampled of it."""
    engine: int = -1
    moves_to: int = -1
    aborted: bool = False
    turn: asyncio.Future[int] | None = None

    @property
    def name(self) -> str:
        """An engine knows each visit as a request of its own."""
        return f"{self.id}#{len(self.parts)}" if self.parts else self.id


@dataclass(slots=True)
class _Place:
    """One engine as the router sees it."""

    engine: Engine
    slots: int = 1
    requests: dict[str, _Request] = field(default_factory=dict)
    """Sent there and not back yet, oldest first."""
    foreign: int = 0
    """Requests of others, at the last look."""
    alive: bool = True

    @property
    def load(self) -> int:
        return len(self.requests) + self.foreign

    @property
    def pressure(self) -> float:
        return self.load / self.slots


class Router:
    def __init__(self, engines: Sequence[Engine], *, replicate: bool = True, balance: bool = True) -> None:
        if not engines:
            raise ValueError("a router needs at least one engine")
        self._places = [_Place(engine) for engine in engines]
        self._replicate = replicate
        self._balance = balance
        self._queue: deque[_Request] = deque()
        self._requests: dict[str, _Request] = {}
        self._home: dict[str, int] = {}
        """Engine by session, or by prompt where candidates stay together."""
        self._by_pressure: list[tuple[float, int]] = []
        """A heap of (pressure, engine); entries that are out of date are skipped."""

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        for place in self._places:
            await place.engine.start()
        self.look()

    async def close(self) -> None:
        for place in self._places:
            await place.engine.close()

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        request = _Request(request_id, session, prompt_ids, params)
        self._requests[request_id] = request
        try:
            while (generation := await self._visit(request)) is None:
                pass
            return _joined([*request.parts, generation])
        finally:
            del self._requests[request_id]

    async def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return
        request.aborted = True
        if request.turn is not None and not request.turn.done():
            request.turn.set_result(-1)
        elif request.engine >= 0:
            await self._places[request.engine].engine.abort(request.name)

    def release(self, session: str) -> None:
        home = self._home.pop(session, None)
        if home is not None:
            self._places[home].engine.release(session)

    async def load_weights(self, weights: Weights) -> None:
        async def load(place: _Place) -> None:
            try:
                await place.engine.load_weights(weights)
            except EngineDead as error:
                self._bury(place, error)

        await asyncio.gather(*(load(place) for place in self._places if place.alive))
        if not any(place.alive for place in self._places):
            raise EngineDead("every engine behind the router is dead")

    def stats(self) -> EngineStats:
        all_stats = [place.engine.stats() for place in self._places if place.alive]
        return EngineStats(
            version=min((s.version for s in all_stats), default=-1),
            generated_tokens=sum(s.generated_tokens for s in all_stats),
            prefilled_tokens=sum(s.prefilled_tokens for s in all_stats),
            cached_tokens=sum(s.cached_tokens for s in all_stats),
            running=sum(s.running for s in all_stats),
            waiting=sum(s.waiting for s in all_stats) + len(self._queue),
            slots=sum(s.slots for s in all_stats),
            busy_s=sum(s.busy_s for s in all_stats),
        )

    def look(self) -> None:
        """Measure the engines: their slots, and what they run for others than this router."""
        for place in self._places:
            if place.alive:
                stats = place.engine.stats()
                place.slots = max(1, stats.slots)
                place.foreign = max(0, stats.running + stats.waiting - len(place.requests))
        self._reheap()

    # --- a request's way ---------------------------------------------------------------------------------------------

    async def _visit(self, request: _Request) -> Generation | None:
        """Play the request on one engine; None if it left that engine for another."""
        index = await self._turn(request)
        if index < 0:
            return Generation((), (), (), "abort")
        place = self._places[index]
        request.engine, request.moves_to = index, -1
        if request.session:
            self._home[request.session] = index
        params, prompt = _rest(request)
        try:
            generation = await place.engine.generate(request.name, prompt, params, session=request.session)
        except EngineDead as error:
            self._bury(place, error)
            if not any(p.alive for p in self._places):
                raise
            return None
        finally:
            self._left(request, index)
        if generation.finish_reason == "abort" and request.moves_to >= 0 and not request.aborted:
            request.parts.append(generation)
            return None
        return generation

    async def _turn(self, request: _Request) -> int:
        """Wait for an engine with room; -1 when the request was aborted meanwhile."""
        if request.aborted:
            return -1
        index = self._choose(request)
        if index is None:
            request.turn = asyncio.get_running_loop().create_future()
            self._queue.append(request)
            try:
                return await request.turn  # whoever set it has booked the place
            except asyncio.CancelledError:
                if request.turn.done() and not request.turn.cancelled() and request.turn.result() >= 0:
                    self._left(request, request.turn.result())
                raise
            finally:
                request.turn = None
        self._book(request, index)
        return index

    def _choose(self, request: _Request) -> int | None:
        if request.moves_to >= 0 and self._places[request.moves_to].alive:
            return request.moves_to
        if not self._replicate:
            return self._pinned(request)
        if self._queue:
            return None
        home = self._home.get(request.session) if request.session else None
        if home is not None and self._has_room(self._places[home]):
            return home
        best = self._least_loaded()
        return best if best is not None and self._has_room(self._places[best]) else None

    def _pinned(self, request: _Request) -> int:
        """The engine of this prompt, room or not: where its candidates share one prefix cache."""
        key = request.session if request.session in self._home else f"prompt {hash(tuple(request.prompt_ids))}"
        home = self._home.get(key)
        if home is None or not self._places[home].alive:
            living = [i for i, p in enumerate(self._places) if p.alive]
            home = self._home[key] = min(living, key=lambda i: (self._places[i].pressure, i))
        return home

    def _has_room(self, place: _Place) -> bool:
        return place.alive and place.load < place.slots

    def _least_loaded(self) -> int | None:
        heap = self._by_pressure
        while heap:
            pressure, index = heap[0]
            place = self._places[index]
            if place.alive and pressure == place.pressure:
                return index
            heapq.heappop(heap)
        return None

    def _book(self, request: _Request, index: int) -> None:
        self._places[index].requests[request.id] = request
        self._note(index)

    def _left(self, request: _Request, index: int) -> None:
        request.engine = -1
        place = self._places[index]
        if place.requests.pop(request.id, None) is None:
            return
        self._note(index)
        self._serve(index)

    def _serve(self, index: int) -> None:
        """A place became free: give it to who waits, or let it take over from a fuller engine."""
        place = self._places[index]
        while self._queue and self._has_room(place):
            request = self._queue.popleft()
            if request.turn is not None and not request.turn.done():
                self._book(request, index)
                request.turn.set_result(index)
        if self._balance and self._replicate and not self._queue:
            self._take_over(index)

    def _take_over(self, index: int) -> None:
        target = self._places[index]
        fullest = max((p for p in self._places if p.alive), key=lambda p: len(p.requests), default=None)
        if fullest is None or not target.alive or len(fullest.requests) - target.load < BALANCE_GAP:
            return
        request = next((r for r in fullest.requests.values() if r.engine >= 0 and r.moves_to < 0), None)
        if request is not None and not request.aborted:
            request.moves_to = index
            # Ends the visit; what it has sampled comes back with it. A task of its own: the engine may take a moment.
            asyncio.get_running_loop().create_task(fullest.engine.abort(request.name))

    def _bury(self, place: _Place, error: EngineDead) -> None:
        if place.alive:
            place.alive = False
            log.warning("an engine died, its requests start again on the others: %s", error)

    def _note(self, index: int) -> None:
        heapq.heappush(self._by_pressure, (self._places[index].pressure, index))
        if len(self._by_pressure) > 16 * len(self._places) + 64:
            self._reheap()

    def _reheap(self) -> None:
        self._by_pressure = [(place.pressure, i) for i, place in enumerate(self._places) if place.alive]
        heapq.heapify(self._by_pressure)


def _rest(request: _Request) -> tuple[SamplingParams, Sequence[int]]:
    """What is left to sample, and from what, after the parts that other engines have sampled."""
    if not request.parts:
        return request.params, request.prompt_ids
    sampled = [i for part in request.parts for i in part.token_ids]
    params = replace(request.params, max_tokens=request.params.max_tokens - len(sampled))
    return params, [*request.prompt_ids, *sampled]


def _joined(parts: Sequence[Generation]) -> Generation:
    if len(parts) == 1:
        return parts[0]
    reason: FinishReason = parts[-1].finish_reason
    ids, logprobs, versions = parts[0].token_ids, parts[0].logprobs, parts[0].versions
    for part in parts[1:]:
        ids, logprobs, versions = ids + part.token_ids, logprobs + part.logprobs, versions + part.versions
    return Generation(ids, logprobs, versions, reason)
