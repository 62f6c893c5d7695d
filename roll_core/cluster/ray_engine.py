"""An engine on another machine, as one :class:`~roll_core.engines.base.Engine`.

Invariants: whatever makes the actor unreachable is EngineDead, so that the router replaces it; what an engine that died
in its actor had sampled comes back with the death; a request given up here is given up there; counters are those of the
last answer, and never block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from roll_core.cluster.distribution import Distribution
from roll_core.cluster.placement import Seat, at_seat
from roll_core.cluster.ray_cluster import START_S, RayCluster
from roll_core.config import Recipe
from roll_core.engines.base import Engine, EngineStats, SamplingParams
from roll_core.errors import EngineDead, WeightsTorn
from roll_core.models import ModelConfig, Tokenizer
from roll_core.types import Generation, Weights
from roll_core.weights import Subscriber
from roll_core.weights.channels import Ticket

log = logging.getLogger(__name__)

_CONCURRENCY = 10_000
"""Calls under way in one actor: every request is one, and the engine itself decides which it serves."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``dead``: why the engine there died; ``generation`` is then what it had of the request."""

    stats: EngineStats
    generation: Generation | None = None
    dead: str = ""
    torn: str = ""
    """Why new weights could not be taken; the engine goes on with those it has."""
    receive_s: float = 0.0


class EngineActor:
    """Runs in Ray's process on the machine."""

    def __init__(self, recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer, index: int, ticket: Ticket) -> None:
        from roll_core.training.assembly import make_one_engine

        self._weights = Subscriber(delta=recipe.weights.delta)
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

    async def load(self, ticket: Ticket) -> Answer:
        try:
            weights = await asyncio.to_thread(self._weights.receive, ticket)
        except WeightsTorn as error:
            return Answer(self._engine.stats(), torn=str(error))
        answer = await self._answer(self._engine.load_weights(weights))
        return replace(answer, receive_s=self._weights.receive_s)

    async def _answer(self, call: Any) -> Answer:
        try:
            found = await call
        except EngineDead as error:
            return Answer(self._engine.stats(), error.partial, dead=str(error))
        return Answer(self._engine.stats(), found)


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
        self._first: Weights | None = weights
        self._ticket = distribution.whole(weights)
        there = (at_seat(recipe, seat), config, tokenizer, index, self._ticket)
        self._actor = cluster.actor(EngineActor, seat, *there, concurrency=_CONCURRENCY)

    async def start(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._call("start")
                assert self._first is not None
                self._distribution.received(self._name, self._first, 0.0)
                self._first = None
        except TimeoutError as error:
            raise EngineDead(
                f"{self._name} did not start on Ray within {START_S:g} s: is there room for it?"
            ) from error

    async def close(self) -> None:
        self._distribution.lost(self._name)
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
        ticket = await self._distribution.ticket(weights, self._name)
        answer = await self._call("load", ticket)
        if answer.torn:
            log.warning("%s is sent the whole version %d: %s", self._name, weights.version, answer.torn)
            answer = await self._call("load", await self._distribution.again(ticket))
        if answer.torn:
            raise EngineDead(f"{self._name} cannot be given version {weights.version} of the weights: {answer.torn}")
        self._distribution.received(self._name, weights, answer.receive_s)

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
            self._distribution.lost(self._name)
            raise EngineDead(f"{self._name} was lost with its process or its machine: {error}") from error
        self._stats = replace(answer.stats, slots=answer.stats.slots or self._slots)
        if answer.dead:
            death = EngineDead(f"{self._name}: {answer.dead}")
            death.partial = answer.generation
            raise death
        return answer
