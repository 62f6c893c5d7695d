"""An engine on another machine, as one :class:`~roll_core.engines.base.Engine`.

Invariants: whatever makes the actor unreachable is EngineDead, so that the router replaces it; what an engine that died
in its actor had sampled comes back with the death; a request given up here is given up there; counters are those of the
last answer, and never block.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from roll_core.cluster.placement import Seat, at_seat
from roll_core.cluster.ray_cluster import START_S, RayCluster, import_ray
from roll_core.config import Recipe
from roll_core.engines.base import Engine, EngineStats, SamplingParams
from roll_core.errors import EngineDead, WrongBase
from roll_core.models import ModelConfig, Tokenizer
from roll_core.types import Generation, Weights
from roll_core.weights import Publisher, Subscriber
from roll_core.weights.channels import RayChannel

_CONCURRENCY = 10_000
"""Calls under way in one actor: every request is one, and the engine itself decides which it serves."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``dead``: why the engine there died; ``generation`` is then what it had of the request."""

    stats: EngineStats
    generation: Generation | None = None
    dead: str = ""
    whole_needed: bool = False


class EngineActor:
    """Runs in Ray's process on the machine."""

    def __init__(self, recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer, index: int, ticket: Any) -> None:
        from roll_core.training.assembly import make_one_engine

        self._weights = Subscriber(RayChannel(import_ray()))
        first = self._weights.receive(ticket)
        self._engine: Engine = make_one_engine(recipe, config, first, tokenizer, index)

    async def start(self) -> Answer:
        return await self._answer(self._engine.start())

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, session: str
    ) -> Answer:
        return await self._answer(self._engine.generate(request_id, prompt_ids, params, session=session))

    async def abort(self, request_id: str) -> None:
        await self._engine.abort(request_id)

    async def release(self, session: str) -> None:
        self._engine.release(session)

    async def load(self, ticket: Any) -> Answer:
        try:
            weights = await asyncio.to_thread(self._weights.receive, ticket)
        except WrongBase:
            return Answer(self._engine.stats(), whole_needed=True)
        return await self._answer(self._engine.load_weights(weights))

    async def _answer(self, call: Any) -> Answer:
        try:
            found = await call
        except EngineDead as error:
            return Answer(self._engine.stats(), error.partial, dead=str(error))
        return Answer(self._engine.stats(), found)


class Distribution:
    """The weights of all engines of a run: each version is packed and put once, whoever of them takes it."""

    def __init__(self, cluster: RayCluster, first: Weights, *, delta: bool) -> None:
        self._publisher = Publisher(RayChannel(cluster.ray), delta=delta)
        self._publisher.publish(first)
        self._held = first
        self._lock = asyncio.Lock()

    async def changes(self, weights: Weights) -> Any:
        """The ticket of ``weights``, packed if nobody asked before."""
        async with self._lock:
            if weights is not self._held:
                await asyncio.to_thread(self._publisher.publish, weights)
                self._held = weights
            assert self._publisher.last is not None
            return self._publisher.last.ticket

    def whole(self, weights: Weights) -> Any:
        """The ticket of all of them; from any thread, for a new engine."""
        if weights is not self._held:  # older or newer than what the others are given: its own packet
            return Publisher(RayChannel(import_ray(), keep=1)).publish(weights).ticket
        return self._publisher.whole().ticket

    async def whole_again(self, weights: Weights) -> Any:
        async with self._lock:
            return await asyncio.to_thread(self.whole, weights)

    def metrics(self) -> dict[str, float]:
        return self._publisher.last.metrics() if self._publisher.last is not None else {}


class RayEngine:
    """An :class:`~roll_core.engines.base.Engine`."""

    def __init__(
        self,
        cluster: RayCluster,
        distribution: Distribution,
        seat: Seat,
        recipe: Recipe,
        config: ModelConfig,
        tokenizer: Tokenizer,
        index: int,
        weights: Weights,
    ) -> None:
        self._cluster, self._distribution, self._name = cluster, distribution, seat.role
        self._stats = EngineStats(-1, 0, 0, 0, 0, 0, recipe.engine.slots, 0.0)
        self._slots = recipe.engine.slots
        self._ticket = distribution.whole(weights)
        there = (at_seat(recipe, seat), config, tokenizer, index, self._ticket)
        self._actor = cluster.actor(EngineActor, seat, *there, concurrency=_CONCURRENCY)

    async def start(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._call("start")
        except TimeoutError as error:
            raise EngineDead(
                f"{self._name} did not start on Ray within {START_S:g} s: is there room for it?"
            ) from error

    async def close(self) -> None:
        await asyncio.to_thread(self._cluster.end, self._actor)

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        try:
            answer = await self._call("generate", request_id, list(prompt_ids), params, session)
        except asyncio.CancelledError:
            self._tell("abort", request_id)
            raise
        assert answer.generation is not None
        return answer.generation

    async def abort(self, request_id: str) -> None:
        self._tell("abort", request_id)

    def release(self, session: str) -> None:
        self._tell("release", session)

    async def load_weights(self, weights: Weights) -> None:
        answer = await self._call("load", await self._distribution.changes(weights))
        if answer.whole_needed:
            await self._call("load", await self._distribution.whole_again(weights))

    def stats(self) -> EngineStats:
        return self._stats

    def _tell(self, method: str, *args: Any) -> None:
        with contextlib.suppress(self._cluster.ray.exceptions.RayError):
            getattr(self._actor, method).remote(*args)

    async def _call(self, method: str, *args: Any) -> Answer:
        """Raises EngineDead; ValueError as the engine there raised it."""
        errors = self._cluster.ray.exceptions
        try:
            answer: Answer = await getattr(self._actor, method).remote(*args)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from error
            raise EngineDead(f"{self._name} raised {error.cause!r} in {method}") from error
        except errors.RayError as error:
            raise EngineDead(f"{self._name} was lost with its process or its machine: {error}") from error
        self._stats = replace(answer.stats, slots=answer.stats.slots or self._slots)
        if answer.dead:
            death = EngineDead(f"{self._name}: {answer.dead}")
            death.partial = answer.generation
            raise death
        return answer
