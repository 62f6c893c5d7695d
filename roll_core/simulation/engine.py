"""An engine that samples nothing: processor sharing under a virtual clock.

While b ≤ ``slots`` sequences decode, each gets a token every a + c·b seconds; the others wait in order of arrival.
Invariants: the same as of every engine (see ``roll_core.engines.base``); the cost of an event is O(log b), whatever the
number of tokens, because progress is kept on one token clock that all running sequences share.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from roll_core.engines.base import EngineStats, SamplingParams
from roll_core.errors import EngineDead
from roll_core.simulation.tokens import generation
from roll_core.types import FinishReason, Generation, Weights

LengthOf = Callable[[Sequence[int], SamplingParams], int]
"""How many tokens the policy would sample after this prompt, from this seed."""


@dataclass(frozen=True, slots=True)
class EngineModel:
    """``a_s`` seconds a pass, ``c_s`` more for each sequence in it."""

    a_s: float
    c_s: float
    slots: int
    load_s: float = 0.0
    """Suspension of generation while new weights are loaded."""
    prefill_s: float = 0.0
    """Seconds that a prompt token costs whoever decodes beside it."""

    def token_s(self, batch: float) -> float:
        return self.a_s + self.c_s * batch

    @property
    def full_token_s(self) -> float:
        """Engine seconds for one token when every slot decodes: what generation costs at its best."""
        return self.token_s(self.slots) / self.slots


@dataclass(slots=True)
class _Request:
    id: str
    session: str
    length: int
    reason: FinishReason
    prompt_size: int
    future: asyncio.Future[Generation]
    started: float = 0.0
    """Reading of the token clock when its first token began."""
    sampled: list[tuple[int, int]] = field(default_factory=list)
    """Tokens by version, those of versions that are no longer served."""


@dataclass(slots=True)
class Meter:
    """Integrals over time, in seconds."""

    busy_s: float = 0.0
    useful_s: float = 0.0
    """Work done, in seconds of a full engine: 1 per second at full batch, less below."""
    paused_s: float = 0.0
    tokens: float = 0.0


class SimulatedEngine:
    def __init__(self, model: EngineModel, length_of: LengthOf, *, version: int = 0) -> None:
        self.model = model
        self.meter = Meter()
        self._length_of = length_of
        self._version = version
        self._running: dict[str, _Request] = {}
        self._ends: list[tuple[float, int, str]] = []
        self._waiting: deque[_Request] = deque()
        self._clock = 0.0
        """Tokens that a sequence running from the start would have by now."""
        self._seen_s = 0.0
        self.paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0
        self._prefilled = 0
        self._death: str | None = None

    # --- the protocol ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._seen_s = asyncio.get_running_loop().time()

    async def close(self) -> None:
        self.die("the engine was closed")

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        if self._death is not None:
            raise EngineDead(self._death)
        wanted = self._length_of(prompt_ids, params)
        length = max(1, min(wanted, params.max_tokens))
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        reason: FinishReason = "length" if wanted > params.max_tokens else "stop"
        self._waiting.append(_Request(request_id, session, length, reason, len(prompt_ids), future))
        self._advance()
        self._rearm()
        try:
            return await future
        except asyncio.CancelledError:
            self._drop(request_id)
            raise

    async def abort(self, request_id: str) -> None:
        request = self._drop(request_id)
        if request is not None and not request.future.done():
            request.future.set_result(generation(request.sampled, "abort"))

    def release(self, session: str) -> None:
        """There is no cache to forget."""

    async def load_weights(self, weights: Weights) -> None:
        await self.suspend()
        await asyncio.sleep(self.model.load_s)
        self._close_version()
        self._version = weights.version
        self.resume()

    def stats(self) -> EngineStats:
        self._advance()
        return EngineStats(
            version=self._version,
            generated_tokens=int(self.meter.tokens),
            prefilled_tokens=self._prefilled,
            cached_tokens=0,
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self.model.slots,
            busy_s=self.meter.busy_s,
        )

    # --- what tests and faults need ----------------------------------------------------------------------------------

    async def suspend(self) -> None:
        self._advance()
        self.paused = True
        self._rearm()

    def resume(self) -> None:
        self._advance()
        self.paused = False
        self._rearm()

    def die(self, why: str) -> None:
        self._advance()
        self._death = why
        for request in (*self._running.values(), *self._waiting):
            if not request.future.done():
                request.future.set_exception(EngineDead(why))
                request.future.exception()  # whoever was cancelled meanwhile will not look at it
        self._running.clear()
        self._waiting.clear()
        self._ends.clear()
        self._rearm()

    # --- the token clock ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        now_s = asyncio.get_running_loop().time()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        batch = len(self._running)
        if self.paused:
            self.meter.paused_s += passed_s
        elif batch and passed_s > 0:
            tokens = passed_s / self.model.token_s(batch)
            self._clock += tokens
            self.meter.busy_s += passed_s
            self.meter.tokens += tokens * batch
            self.meter.useful_s += tokens * batch * self.model.full_token_s

    def _rearm(self) -> None:
        """Fill the slots and set the timer to the next end. Call after :meth:`_advance` and a change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.paused:
            return
        while self._waiting and len(self._running) < self.model.slots:
            self._admit(self._waiting.popleft())
        while self._ends and self._ends[0][2] not in self._running:
            heapq.heappop(self._ends)
        if self._ends:
            wait_s = max(0.0, self._ends[0][0] - self._clock) * self.model.token_s(len(self._running))
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._reached)

    def _admit(self, request: _Request) -> None:
        request.started = self._clock
        self._prefilled += request.prompt_size
        # Reading a prompt holds everybody up for a moment, as a pass that carries it does.
        prefill_s = self.model.prefill_s * request.prompt_size
        self._running[request.id] = request
        delay = prefill_s / self.model.token_s(len(self._running))
        self._count += 1
        heapq.heappush(self._ends, (self._clock + request.length + delay, self._count, request.id))

    def _reached(self) -> None:
        self._timer = None
        self._advance()
        while self._ends and (self._ends[0][0] <= self._clock + 1e-6 or self._ends[0][2] not in self._running):
            request = self._running.pop(heapq.heappop(self._ends)[2], None)
            if request is not None:
                self._finish(request)
        self._rearm()

    def _finish(self, request: _Request) -> None:
        rest = request.length - sum(n for _, n in request.sampled)
        if rest:
            request.sampled.append((self._version, rest))
        if not request.future.done():
            request.future.set_result(generation(request.sampled, request.reason))

    def _close_version(self) -> None:
        """Book what was sampled so far under the version that sampled it."""
        self._advance()
        for request in self._running.values():
            self._note_progress(request)

    def _note_progress(self, request: _Request) -> None:
        done = min(request.length - 1, int(self._clock - request.started)) - sum(n for _, n in request.sampled)
        if done > 0:
            request.sampled.append((self._version, done))

    def _drop(self, request_id: str) -> _Request | None:
        self._advance()
        request = self._running.pop(request_id, None)
        if request is not None:
            self._note_progress(request)
        else:
            request = next((r for r in self._waiting if r.id == request_id), None)
            if request is not None:
                self._waiting.remove(request)
        self._rearm()
        return request
