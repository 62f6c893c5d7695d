"""Simulated environments and the prompter that goes with them: latencies and faults instead of text.

What the policy says does not matter here, only how long everything takes and which groups have signal. Every draw is
addressed by the group's seed and the member's number, so that all policies of scheduling meet the same episodes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rock.domain import errors
from roll_core.rollout.prompting import Response
from roll_core.rollout.sessions import StepTuple
from roll_core.simulation.draws import uniform

LatencyOf = Callable[[int, int, int], float]
"""Seconds of one step, for (group seed, member, turn). Raises RockError to simulate a fault at that step."""


def instant(group_seed: int, member: int, turn: int) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class EnvironmentModel:
    turns: int = 1
    latency: LatencyOf = instant
    keep: float = 1.0
    """Share of groups whose members' rewards differ; the others carry no signal and are filtered."""
    open_s: float = 0.0
    loss: float = 0.0
    """Probability that an episode loses its sandbox at some turn."""


class _SimulatedSession:
    def __init__(self, model: EnvironmentModel, seed: int, member: int) -> None:
        self._model = model
        self._seed = seed
        self._member = member
        self._turn = 0
        lost = uniform(seed, member, 0x105) < model.loss
        self._lost_at = int(uniform(seed, member, 0x106) * model.turns) if lost else -1

    @property
    def sandbox_id(self) -> str:
        return f"sim-{self._seed}-{self._member}"

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self._seed, {}

    async def step(self, action: Any) -> StepTuple:
        latency_s = self._model.latency(self._seed, self._member, self._turn)
        if latency_s > 0:
            await asyncio.sleep(latency_s)
        if self._turn == self._lost_at:
            raise errors.SandboxLost(f"{self.sandbox_id} died at turn {self._turn}")
        self._turn += 1
        over = self._turn >= self._model.turns
        reward = self._reward() if over else 0.0
        return self._seed, reward, over, False, {"success": reward > 0}

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        raise errors.InvalidAction(f"a simulated environment has no method {method!r}")

    def _reward(self) -> float:
        """Neighbours in a group with signal differ, so any members of it do."""
        signal = uniform(self._seed, 0x51) < self._model.keep
        return float(self._member % 2) if signal else 1.0


class SimulatedSessions:
    """A :class:`~roll_core.rollout.sessions.SessionFactory`."""

    def __init__(self, model: EnvironmentModel) -> None:
        self._model = model
        self._members: Counter[int] = Counter()
        self.open_now = 0

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[_SimulatedSession]:
        member = self._members[seed]
        self._members[seed] += 1
        if self._model.open_s:
            await asyncio.sleep(self._model.open_s)
        self.open_now += 1
        try:
            yield _SimulatedSession(self._model, seed, member)
        finally:
            self.open_now -= 1

    async def tasks(self, split: str) -> Sequence[str]:
        return ("task",)

    async def digest(self) -> str:
        return "simulated"

    async def close(self) -> None:
        return None


class SimulatedPrompter:
    """The first token of a prompt is the group's seed; the context between turns is one token."""

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def opening(self, observation: Any, info: Mapping[str, Any]) -> list[int]:
        return [int(observation)]

    def following(self, observation: Any, info: Mapping[str, Any], sampled: Sequence[int]) -> list[int]:
        return [0]

    def parse(self, sampled: Sequence[int]) -> Response:
        return Response("", "")

    def demonstrate(self, action: str) -> list[int]:
        raise NotImplementedError("a simulated policy cannot be shown anything")
