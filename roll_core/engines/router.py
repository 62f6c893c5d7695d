"""Several engines behind one :class:`~roll_core.engines.base.Engine`.

Each request goes to the engine with the least measured pressure, and no sooner than one has room: what waits, waits
here, where any engine that becomes free can take it. The candidates of one prompt are therefore spread over all engines
(*prompt replication*, ROLL Flash, arXiv 2510.11345; the groups reassemble them when they return), unless
``replicate`` is off. The requests of a session go back to the engine that holds its KV cache while it has room.

``balance`` [ours]: when nothing waits, the longest-running request of the fullest engine moves to one that has emptied,
with the tokens it has. In the tail of a batch a sequence's speed is set by its neighbours, and the longest decides.

An engine that dies is replaced where a :class:`~roll_core.engines.renewal.Renewal` says how; what it ran goes on
elsewhere, or there, with the tokens it had.

Invariants: a request ends in one Generation or one error, wherever it was played; an engine that dies takes no request
with it while another lives or may still come; weights have reached every living engine when
:meth:`Router.load_weights` returns, and a new one serves nothing before it has them.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from roll_core.engines.base import Engine, EngineStats, SamplingParams
from roll_core.engines.renewal import Renewal
from roll_core.engines.routed import Routed
from roll_core.errors import EngineDead
from roll_core.types import Generation, Weights

log = logging.getLogger(__name__)

BALANCE_GAP = 2
"""Difference in running requests from which a move pays: it costs reading the prompt again. 2 was better than 4 on
every W1 workload of ``benchmarks.async_speedup``, on its tuning seeds, by 0.5 to 1.2 %."""


_COUNTERS = ("generated_tokens", "prefilled_tokens", "cached_tokens", "busy_s", "load_s", "restarts")
_NOTHING = EngineStats(-1, 0, 0, 0, 0, 0, 0, 0.0)


@dataclass(slots=True)
class _Place:
    """One engine as the router sees it."""

    engine: Engine
    slots: int = 1
    requests: dict[str, Routed] = field(default_factory=dict)
    """Sent there and not back yet, oldest first."""
    foreign: int = 0
    """Requests of others, at the last look."""
    alive: bool = True
    coming: asyncio.Task[None] | None = None
    """The replacement of a dead one, while it starts."""
    past: EngineStats = _NOTHING
    """Counters of those that died here."""

    @property
    def load(self) -> int:
        return len(self.requests) + self.foreign

    @property
    def pressure(self) -> float:
        return self.load / self.slots

    def stats(self) -> EngineStats:
        """Counters of all that were here; the rest of the living one."""
        if not self.alive:
            return self.past
        now = self.engine.stats()
        return replace(now, **{name: getattr(now, name) + getattr(self.past, name) for name in _COUNTERS})


class Router:
    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        replicate: bool = True,
        balance: bool = True,
        renewal: Renewal | None = None,
        weight_metrics: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """``renewal``: how to replace an engine that died; None: the others go on without it. ``weight_metrics``: what
        the way of the weights to the engines cost last, as ``weights/…``."""
        if not engines:
            raise ValueError("a router needs at least one engine")
        self._places = [_Place(engine) for engine in engines]
        self._renewal = renewal
        self.weight_metrics = weight_metrics
        self.publish_s = 0.0
        """How long the last version took to reach every engine."""
        self._replicate = replicate
        self._balance = balance
        self._queue: deque[Routed] = deque()
        self._last_death: EngineDead | None = None
        self._requests: dict[str, Routed] = {}
        self._home: dict[str, int] = {}
        """Engine by session, or by prompt where candidates stay together."""
        self._by_pressure: list[tuple[float, int]] = []
        """A heap of (pressure, engine); entries that are out of date are skipped."""
        self._reheap()

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        for place in self._places:
            await place.engine.start()
        self.look()

    async def close(self) -> None:
        coming = [place.coming for place in self._places if place.coming is not None]
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for place in self._places:
            await place.engine.close()

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        request = Routed(request_id, session, prompt_ids, params)
        self._requests[request_id] = request
        try:
            while (generation := await self._visit(request)) is None:
                pass
            return request.joined(generation)
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
        if self._renewal is not None:
            self._renewal.weights = weights  # whoever starts now takes these
        clock = asyncio.get_running_loop().time
        began_s = clock()

        async def load(index: int) -> None:
            engine = self._places[index].engine
            try:
                await engine.load_weights(weights)
            except EngineDead as error:
                self._bury(index, engine, error)

        await asyncio.gather(*(load(i) for i, place in enumerate(self._places) if place.alive))
        self.publish_s = clock() - began_s
        if not self._hope:
            raise self._all_dead()

    def stats(self) -> EngineStats:
        all_stats = self.members()
        sums = {name: sum(getattr(s, name) for s in all_stats) for name in (*_COUNTERS, "running", "slots")}
        waiting = sum(s.waiting for s in all_stats) + len(self._queue)
        version = min((s.version for s in all_stats if s.version >= 0), default=-1)
        return EngineStats(version=version, waiting=waiting, **sums)

    def members(self) -> tuple[EngineStats, ...]:
        """Each engine by itself; of one that is dead the counters, version −1 and no slots."""
        return tuple(place.stats() for place in self._places)

    def look(self) -> None:
        """Measure the engines: their slots, and what they run for others than this router."""
        for place in self._places:
            if place.alive:
                stats = place.engine.stats()
                place.slots = max(1, stats.slots)
                place.foreign = max(0, stats.running + stats.waiting - len(place.requests))
        self._reheap()

    # --- a request's way ---------------------------------------------------------------------------------------------

    async def _visit(self, request: Routed) -> Generation | None:
        """Play the request on one engine; None if it left that engine for another."""
        index = await self._turn(request)
        if index < 0:
            return Generation((), (), (), "abort")
        engine = self._places[index].engine
        request.engine, request.moves_to = index, -1
        if request.session:
            self._home[request.session] = index
        params, prompt = request.rest()
        try:
            generation = await engine.generate(request.name, prompt, params, session=request.session)
        except EngineDead as error:
            self._bury(index, engine, error)
            if not self._hope:
                raise
            return request.keep(error.partial)
        finally:
            self._left(request, index)
        if generation.finish_reason == "abort" and request.moves_to >= 0 and not request.aborted:
            request.parts.append(generation)
            return None
        return generation

    async def _turn(self, request: Routed) -> int:
        """Wait for an engine with room; -1 when the request was aborted meanwhile."""
        if request.aborted:
            return -1
        index = self._choose(request)
        if index is None:
            if not self._hope:
                raise self._all_dead()
            request.turn = asyncio.get_running_loop().create_future()
            self._queue.append(request)
            try:
                return await request.turn  # whoever set it has booked the place
            except asyncio.CancelledError:
                turn = request.turn
                if turn.done() and not turn.cancelled() and not turn.exception() and turn.result() >= 0:
                    self._left(request, turn.result())
                raise
            finally:
                request.turn = None
        self._book(request, index)
        return index

    def _choose(self, request: Routed) -> int | None:
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

    def _pinned(self, request: Routed) -> int | None:
        """The engine of this prompt, room or not: where its candidates share one prefix cache."""
        key = request.session if request.session in self._home else f"prompt {hash(tuple(request.prompt_ids))}"
        home = self._home.get(key)
        if home is None or not self._places[home].alive:
            living = [i for i, p in enumerate(self._places) if p.alive]
            if not living:
                return None
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

    def _book(self, request: Routed, index: int) -> None:
        self._places[index].requests[request.id] = request
        self._note(index)

    def _left(self, request: Routed, index: int) -> None:
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

    # --- death and replacement ---------------------------------------------------------------------------------------

    @property
    def _hope(self) -> bool:
        return any(place.alive or place.coming is not None for place in self._places)

    def _bury(self, index: int, engine: Engine, error: EngineDead) -> None:
        """Called by everyone who hears of the death; the first one counts."""
        place = self._places[index]
        if not place.alive or place.engine is not engine:
            return
        place.past = replace(place.stats(), version=-1, running=0, waiting=0, slots=0)
        place.alive, place.foreign = False, 0
        log.warning("engine %d died, its requests go on elsewhere: %s", index, error)
        self._last_death = error
        self._renew(index, error)

    def _all_dead(self) -> EngineDead:
        error = EngineDead(f"every engine behind the router is dead; the last: {self._last_death}")
        error.__cause__ = self._last_death
        return error

    def _renew(self, index: int, error: EngineDead) -> None:
        place, loop = self._places[index], asyncio.get_running_loop()
        if self._renewal is not None and self._renewal.allowed(loop.time()):
            place.coming = loop.create_task(self._replace(index, self._renewal), name=f"replace engine {index}")
        else:
            place.coming = None
            self._despair(error)

    async def _replace(self, index: int, renewal: Renewal) -> None:
        place = self._places[index]
        try:
            place.engine = await renewal.replace(index, place.engine)
        except EngineDead as error:
            self._renew(index, error)
            return
        place.past = replace(place.past, restarts=place.past.restarts + 1)
        place.alive, place.coming = True, None
        self._home = {session: home for session, home in self._home.items() if home != index}  # its cache is gone
        log.warning("engine %d was replaced", index)
        self.look()
        self._serve(index)

    def _despair(self, error: EngineDead) -> None:
        """Nobody will ever serve those who wait: tell them."""
        if self._hope:
            return
        while self._queue:
            request = self._queue.popleft()
            if request.turn is not None and not request.turn.done():
                request.turn.set_exception(EngineDead(f"every engine is dead, the last one of: {error}"))

    def _note(self, index: int) -> None:
        heapq.heappush(self._by_pressure, (self._places[index].pressure, index))
        if len(self._by_pressure) > 16 * len(self._places) + 64:
            self._reheap()

    def _reheap(self) -> None:
        self._by_pressure = [(place.pressure, i) for i, place in enumerate(self._places) if place.alive]
        heapq.heapify(self._by_pressure)
