"""Episodes played by a program that speaks to the policy as to any OpenAI-compatible endpoint.

The episode opens and resets its sandbox, then the program plays: it asks the endpoint for answers and acts in the
environment. Its recorded session becomes the trajectory, the environment's rewards become the outcome.

Invariants: those of :class:`Episode`; besides, a program that crashes makes the episode void unless the environment had
ended it or a limit had been reached; nothing is answered, and nothing acts, after the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from rock.domain.errors import RockError
from rock.domain.outcome import Completed, Outcome, Truncated, Void, VoidCause
from roll_core.rollout import sessions
from roll_core.rollout.clock import now_s
from roll_core.rollout.episode import Episode, Player
from roll_core.rollout.work import EpisodeSpec
from roll_core.serving.chats import Node
from roll_core.serving.doors import EpisodeKeys, Seat
from roll_core.serving.programs import AgentTask, Program
from roll_core.serving.rendering import Renderer
from roll_core.serving.session import Bounds, Session
from roll_core.serving.wire import ApiError
from roll_core.types import Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the policy is served to episodes."""

    url: str
    """Ends in ``/v1``."""
    keys: EpisodeKeys
    renderer: Renderer
    model: str


@dataclass(frozen=True, slots=True)
class AgentPlayer(Player):
    """What all episodes of a phase have in common, where a program plays them."""

    endpoint: Endpoint
    program: Program
    grace_s: float
    finish: str | None = None

    def episode(self, spec: EpisodeSpec) -> Episode:
        return AgentEpisode(self, spec)


class AgentEpisode(Episode):
    def __init__(self, player: AgentPlayer, spec: EpisodeSpec) -> None:
        super().__init__(player, spec)
        self._agent = player
        limits = player.limits
        bounds = Bounds(
            limits.max_tokens_per_turn, limits.max_context_tokens, limits.generate_s, max_answers=limits.max_turns
        )
        self._policy = Session(
            spec.id,
            player.endpoint.renderer,
            player.engine,
            replace(player.sampling, seed=spec.sampling_seed),
            bounds,
            fixed_sampling=True,
        )
        self._end: Outcome | None = None
        self._lost: RockError | None = None
        self._stuck = 0
        self._acting = asyncio.Lock()
        self._view: dict[str, Any] = {}

    def so_far(self, outcome: Outcome) -> Trajectory:
        path = self._policy.chats.main()
        kept = {id(node) for node in path}
        left = sum(len(n.generation.token_ids) for n in self._policy.chats.nodes() if id(n) not in kept)
        self._turns = [_turn(node) for node in path]
        return replace(super().so_far(outcome), side_tokens=left + self._policy.unused_tokens)

    async def _turns_until_the_end(self, session: sessions.Session, observation: Any, info: dict[str, Any]) -> Outcome:
        self._view = {"observation": observation, "reward": 0.0, "terminated": False, "truncated": False, "info": info}
        stage = _Stage(self, session)
        async with self._admitted(stage) as key:
            crash = await self._play_by_program(stage, key, observation, info)
        async with self._acting:  # an action that was under way belongs to the episode
            pass
        outcome = self._outcome(crash)
        if outcome is None and self._agent.finish is not None:
            await stage.step(self._agent.finish)
            outcome = self._outcome("")
        return outcome or Truncated("agent", self._reward)

    @asynccontextmanager
    async def _admitted(self, stage: _Stage) -> AsyncIterator[str]:
        """A key to the endpoint, until the program has ended."""
        keys = self._agent.endpoint.keys
        key = keys.admit(Seat(self._policy, stage))
        try:
            yield key
        finally:
            keys.dismiss(key)
            await self._policy.close()

    async def _play_by_program(self, stage: _Stage, key: str, observation: Any, info: dict[str, Any]) -> str:
        self._doing = "agent"
        endpoint, spec = self._agent.endpoint, self.spec
        task = AgentTask(
            endpoint.url, key, endpoint.model, spec.id, spec.task, spec.seed, observation, info, stage.step
        )
        playing = asyncio.ensure_future(self._agent.program.play(task))
        ended = asyncio.ensure_future(self._policy.ended.wait())
        try:
            await asyncio.wait({playing, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() and self._policy.error is None and self._lost is None:
                await asyncio.wait({playing}, timeout=self._agent.grace_s)
            return playing.result() if playing.done() else ""
        finally:
            ended.cancel()
            playing.cancel()
            await asyncio.wait({playing})

    def _outcome(self, crash: str) -> Outcome | None:
        """How it ended; None where nobody ended it yet. Raises what makes it void, or the run impossible."""
        policy = self._policy
        if policy.error is not None:
            raise policy.error
        if self._lost is not None:
            raise self._lost
        if policy.aborted:
            return Void(VoidCause.PLATFORM, "the engine aborted the generation")
        if self._end is not None and policy.chats.count:
            return self._end
        if policy.limit:
            return Truncated(policy.limit, self._reward)
        if crash:
            return Void(VoidCause.ENVIRONMENT_ERROR, f"agent: {crash}")
        if not policy.chats.count:
            return Void(VoidCause.ENVIRONMENT_ERROR, "agent: it ended without an answer of the policy")
        return None

    # --- the environment, as the program acts in it ------------------------------------------------------------------

    async def act(self, session: sessions.Session, action: Any) -> dict[str, Any]:
        """Raises ApiError when the episode is over, and errors of the platform, which void it."""
        async with self._acting:
            if self._end is not None:
                raise ApiError(409, "The episode is over.", code="episode_over")
            began_s = now_s()
            try:
                observation, reward, terminated, truncated, info = await self._step(session, action, None)
            except RockError as error:
                self._lost = error
                self._policy.ended.set()
                raise
            self._doing = "agent"
            self._note(reward, now_s() - began_s, bool(info.get("is_action_valid", True)))
            self._view = {
                "observation": observation, "reward": reward, "terminated": terminated, "truncated": truncated,
                "info": info,
            }  # fmt: skip
            success = bool(info.get("success", terminated and reward > 0))
            if terminated:
                self._over(Completed(self._reward, success))
            elif truncated:
                self._over(Truncated("environment", self._reward, success))
            return {**self._view, "over": self._end is not None}

    def _note(self, reward: float, env_s: float, valid: bool) -> None:
        """What an action brought belongs to the latest answer; what was earned before any, to the outcome alone."""
        self._reward += reward
        if (node := self._policy.chats.last) is None:
            return
        node.reward += reward
        node.env_s += env_s
        node.valid = node.valid and valid
        self._stuck = 0 if node.valid else self._stuck + 1
        limit = self._player.limits.max_invalid_turns
        if limit and self._stuck >= limit:
            self._over(Truncated("stuck", self._reward))

    def _over(self, outcome: Outcome) -> None:
        self._end = outcome
        self._policy.closed = True
        self._policy.ended.set()

    def view(self) -> dict[str, Any]:
        return {
            **self._view, "id": self.spec.id, "env": self._player.env, "task": self.spec.task, "seed": self.spec.seed,
            "over": self._end is not None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stage:
    _episode: AgentEpisode
    _session: sessions.Session

    def view(self) -> dict[str, Any]:
        return self._episode.view()

    async def step(self, action: Any) -> dict[str, Any]:
        return await self._episode.act(self._session, action)


def _turn(node: Node) -> Turn:
    calls = "\n".join(f"{call.name}({call.arguments})" for call in node.answer.calls)
    observation = "\n".join(said.text for said in node.heard if said.role != "assistant")
    said = "\n".join(part for part in (node.answer.text, calls) if part)
    return Turn(
        node.context_ids, node.generation, observation, said, calls or node.answer.text.strip(), node.reward,
        node.generate_s, node.env_s, node.valid,
    )  # fmt: skip
