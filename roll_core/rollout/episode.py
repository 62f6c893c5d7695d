"""One coroutine per episode: take a sandbox, reset, (generate → step)*, outcome.

Invariants: an episode always ends, because every wait has a deadline; whatever breaks in the sandbox or the platform
makes it *void*, with the cause, and never a reward; limits of turns or tokens make it *truncated*, which counts; when
cancelled it stops generating, gives its sandbox back and can still say what it cost. Only errors that would repeat for
ever (the caller's fault, a dead engine) are raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rock.domain import errors
from rock.domain.errors import Fault, RockError
from rock.domain.outcome import Completed, Outcome, Truncated, Void, VoidCause
from roll_core.engines.base import Engine, SamplingParams
from roll_core.errors import EngineDead, NoProgress
from roll_core.rollout.clock import now_s
from roll_core.rollout.prompting import Prompter
from roll_core.rollout.sessions import Session, SessionFactory, recoveries_of
from roll_core.rollout.work import EpisodeSpec
from roll_core.types import Generation, Trajectory, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    max_turns: int
    max_tokens_per_turn: int
    max_context_tokens: int
    open_s: float
    """Deadline for getting a sandbox."""
    reset_s: float
    step_s: float
    generate_s: float
    episode_s: float
    """Deadline for everything together; must exceed each of the others."""
    close_s: float = 10.0
    recovery_s: float = 0.0
    """How much longer a reset or a step may take, when the sandbox is lost meanwhile and replaced."""
    max_invalid_turns: int = 0
    """In a row, after which the episode is truncated as stuck; 0: no limit."""


@dataclass(frozen=True, slots=True)
class Player:
    """What all episodes of a phase have in common; :meth:`episode` makes one."""

    env: str
    env_options: dict[str, Any]
    sessions: SessionFactory
    engine: Engine
    prompter: Prompter
    sampling: SamplingParams
    limits: EpisodeLimits

    def episode(self, spec: EpisodeSpec) -> Episode:
        return Episode(self, spec)


class Episode:
    def __init__(self, player: Player, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._player = player
        self._turns: list[Turn] = []
        self._reward = 0.0
        self._sandbox_id = ""
        self._opened_s: float | None = None
        self._sandbox_s = 0.0
        self._recoveries = 0
        self._open_s = self._reset_s = 0.0
        self._started_at_s = time.time()
        self._doing = "open"

    async def play(self) -> Trajectory:
        """Raises: RockError of the caller's fault, EngineDead, NoProgress when the engine does not answer."""
        try:
            async with asyncio.timeout(self._player.limits.episode_s):
                outcome = await self._play()
        except TimeoutError:
            outcome = Void(
                VoidCause.DEADLINE, f"{self._doing} exceeded {self._player.limits.episode_s:g} s per episode"
            )
        except RockError as error:
            outcome = self._void(error)
        finally:
            self._player.engine.release(self.spec.id)
        return self.so_far(outcome)

    def so_far(self, outcome: Outcome) -> Trajectory:
        """The episode as it stands, ended by ``outcome``."""
        spec = self.spec
        return Trajectory(
            id=spec.id, group_id=spec.group_id, env=self._player.env, task=spec.task, seed=spec.seed,
            init_version=spec.init_version, turns=tuple(self._turns), outcome=outcome, sandbox_id=self._sandbox_id,
            sandbox_s=self._sandbox_s, started_at_s=self._started_at_s, ended_at_s=time.time(),
            recoveries=self._recoveries, open_s=self._open_s, reset_s=self._reset_s,
        )  # fmt: skip

    async def _play(self) -> Outcome:
        limits = self._player.limits
        stack = AsyncExitStack()
        started_s = now_s()
        try:
            opening = stack.enter_async_context(self._player.sessions.open(self.spec.task, self.spec.seed))
            session = await self._within("open", opening, limits.open_s)
            self._opened_s = now_s()
            self._open_s = self._opened_s - started_s
            self._sandbox_id = session.sandbox_id
            before = recoveries_of(session)
            try:
                reset = session.reset(self.spec.task, self.spec.seed, self._player.env_options or None)
                observation, info = await self._within("reset", reset, limits.reset_s + limits.recovery_s)
                self._reset_s = now_s() - self._opened_s
                return await self._turns_until_the_end(session, observation, info)
            finally:
                self._recoveries = recoveries_of(session) - before
        finally:
            await self._give_back(stack)

    async def _turns_until_the_end(self, session: Session, observation: Any, info: dict[str, Any]) -> Outcome:
        player, limits = self._player, self._player.limits
        context = player.prompter.opening(observation, info)
        sequence: list[int] = []
        stuck = 0
        for _ in range(limits.max_turns):
            sequence += context
            room = limits.max_context_tokens - len(sequence)
            if room < 1:
                return Truncated("context", self._reward)
            started_s = now_s()
            generation = await self._generate(sequence, min(room, limits.max_tokens_per_turn))
            generated_s = now_s()
            if generation.finish_reason == "abort":
                return Void(VoidCause.PLATFORM, "the engine aborted the generation")
            sequence += generation.token_ids
            response = player.prompter.parse(generation.token_ids)
            self._turns.append(
                Turn(
                    tuple(context), generation, str(observation), response.text, response.action,
                    generate_s=generated_s - started_s,
                )
            )  # fmt: skip
            observation, reward, terminated, truncated, info = await self._step(session, response.action, observation)
            self._reward += reward
            valid = response.valid and bool(info.get("is_action_valid", True))
            env_s = now_s() - generated_s
            self._turns[-1] = replace(self._turns[-1], reward=reward, env_s=env_s, valid=valid)
            success = bool(info.get("success", terminated and reward > 0))
            if terminated:
                return Completed(self._reward, success)
            if truncated:
                return Truncated("environment", self._reward, success)
            stuck = 0 if valid else stuck + 1
            if limits.max_invalid_turns and stuck >= limits.max_invalid_turns:
                return Truncated("stuck", self._reward)
            context = player.prompter.following(observation, info, generation.token_ids)
        return Truncated("turns", self._reward)

    async def _step(self, session: Session, action: str, before: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            limits = self._player.limits
            return await self._within("step", session.step(action), limits.step_s + limits.recovery_s)
        except errors.InvalidAction as error:  # the policy's fault: it is told, and the episode goes on
            return error.message, 0.0, False, False, {}

    async def _generate(self, sequence: list[int], max_tokens: int) -> Generation:
        engine, turn = self._player.engine, len(self._turns)
        request_id = f"{self.spec.id}/{turn}"
        # One stream per turn: a replayed episode samples the same tokens, two turns do not repeat each other.
        seed = (self.spec.sampling_seed + 0x9E3779B1 * turn) % 2**31
        params = replace(self._player.sampling, max_tokens=max_tokens, seed=seed)
        self._doing = "generate"
        # A task of its own, so that a cancelled episode can still be told what was sampled for it.
        request = asyncio.ensure_future(engine.generate(request_id, sequence, params, session=self.spec.id))
        try:
            async with asyncio.timeout(self._player.limits.generate_s):
                return await asyncio.shield(request)
        except TimeoutError as error:
            request.cancel()
            raise NoProgress(
                f"the engine did not finish {request_id} within {self._player.limits.generate_s:g} s; its state: "
                f"{engine.stats()}. Raise rollout.generate_s if the engine is only slow."
            ) from error
        except asyncio.CancelledError:
            await self._abort(request_id, request)
            raise

    async def _abort(self, request_id: str, request: asyncio.Future[Generation]) -> None:
        """End the generation and keep what it had sampled: the account is charged for it."""
        with contextlib.suppress(asyncio.CancelledError, TimeoutError, EngineDead):
            async with asyncio.timeout(self._player.limits.close_s):
                await self._player.engine.abort(request_id)
                partial = await request
                self._turns.append(Turn((), partial, "", "", "", valid=False))

    async def _within(self, doing: str, wait: Awaitable[T], deadline_s: float) -> T:
        self._doing = doing
        try:
            async with asyncio.timeout(deadline_s):
                return await wait
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{doing} of task {self.spec.task} exceeded {deadline_s:g} s") from error

    async def _give_back(self, stack: AsyncExitStack) -> None:
        if self._opened_s is not None:
            self._sandbox_s = now_s() - self._opened_s
        try:
            async with asyncio.timeout(self._player.limits.close_s):
                await stack.aclose()
        except (RockError, TimeoutError) as error:
            # The lease ends by itself without our heartbeat; the episode's outcome does not change.
            log.info("sandbox %s was not given back in order: %s", self._sandbox_id, error)

    def _void(self, error: RockError) -> Void:
        cause = void_cause(error, self._doing)
        if cause is None:
            raise error
        return Void(cause, f"{self._doing}: {error}")


def void_cause(error: RockError, doing: str) -> VoidCause | None:
    """Why ``error`` voids an episode; None if it is the caller's fault and would meet every other episode as well."""
    if isinstance(error, errors.LeaseExpired | errors.StaleEpoch):
        return VoidCause.LEASE_LOST
    if error.fault is Fault.CALLER:
        # The recipe's faults (environment, task, key) show when a sandbox is taken or reset. Later ones mean that
        # what was held is no longer there.
        return VoidCause.LEASE_LOST if doing in ("step", "generate") else None
    if isinstance(error, errors.TaskQuarantined):
        return VoidCause.QUARANTINED
    if isinstance(error, errors.Quarantined):
        return VoidCause.PLATFORM  # the environment's image: no task can be played
    if error.fault is Fault.ENVIRONMENT:
        return VoidCause.RESET_FAILED if doing == "reset" else VoidCause.ENVIRONMENT_ERROR
    if isinstance(error, errors.SandboxLost):
        return VoidCause.SANDBOX_LOST
    if isinstance(error, errors.DeadlineExceeded):
        return VoidCause.DEADLINE
    return VoidCause.PLATFORM
