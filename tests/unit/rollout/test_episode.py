"""One episode: every way it can end, and that it always does."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from rock.domain import errors
from rock.domain.outcome import Completed, Truncated, Void, VoidCause
from roll_core.engines.base import EngineStats, SamplingParams
from roll_core.errors import EngineDead, NoProgress
from roll_core.models import train_tokenizer
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.prompting import TextRules, TranscriptPrompter
from roll_core.rollout.work import EpisodeSpec
from roll_core.types import Generation

TOKENIZER = train_tokenizer(["look around\n> go\n"], 300)
SPEC = EpisodeSpec("ep-1", "g-1", "task", 3, 5, 2)


class ScriptedEngine:
    """Says ``look`` at once, or what a test wants instead."""

    def __init__(self, behave=None) -> None:
        self._behave = behave
        self.prompts: list[list[int]] = []
        self.seeds: list[int | None] = []
        self.aborted: list[str] = []
        self.released: list[str] = []

    async def generate(self, request_id, prompt_ids, params: SamplingParams, *, session="") -> Generation:
        self.prompts.append(list(prompt_ids))
        self.seeds.append(params.seed)
        if self._behave is not None:
            return await self._behave()
        ids = tuple(TOKENIZER.encode(" look\n"))[: params.max_tokens]
        return Generation(ids, (-0.5,) * len(ids), (2,) * len(ids), "stop")

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def release(self, session: str) -> None:
        self.released.append(session)

    def stats(self) -> EngineStats:
        return EngineStats(2, 0, 0, 0, 0, 0, 1, 0.0)


class ScriptedSessions:
    """``fails`` maps an operation to the error it raises, or to None for one that never answers."""

    def __init__(self, steps=3, **fails) -> None:
        self._steps = steps
        self._fails = fails
        self.opened = self.closed = 0
        self.sandbox_id = "sb-1"

    @asynccontextmanager
    async def open(self, task, seed):
        await self._maybe("open")
        self.opened += 1
        try:
            yield self
        finally:
            self.closed += 1
            await self._maybe("close")

    async def _maybe(self, operation: str) -> None:
        if operation in self._fails:
            if self._fails[operation] is None:
                await asyncio.Event().wait()
            raise self._fails[operation]

    async def reset(self, task, seed, options):
        await self._maybe("reset")
        return "start", {}

    async def step(self, action):
        await self._maybe("step")
        self._steps -= 1
        won = self._steps == 0
        return "seen", float(won), won, False, {"success": won}


def player(sessions, engine, **changes) -> Player:
    limits = {
        "max_turns": 5, "max_tokens_per_turn": 8, "max_context_tokens": 200, "open_s": 0.05, "reset_s": 0.05,
        "step_s": 0.05, "generate_s": 0.05, "episode_s": 5.0, "close_s": 0.05,
    }  # fmt: skip
    prompter = TranscriptPrompter(TOKENIZER, TextRules())
    return Player(
        "e", {}, sessions, engine, prompter, SamplingParams(max_tokens=8), EpisodeLimits(**(limits | changes))
    )


def play(sessions, engine=None, **limits):
    return asyncio.run(player(sessions, engine or ScriptedEngine(), **limits).episode(SPEC).play())


def test_an_episode_that_is_won() -> None:
    sessions, engine = ScriptedSessions(), ScriptedEngine()
    trajectory = play(sessions, engine)
    assert trajectory.outcome == Completed(1.0, True)
    assert [t.action for t in trajectory.turns] == ["look"] * 3
    assert TOKENIZER.decode(trajectory.token_ids()) == "start\n> look\nseen\n> look\nseen\n> look\n"
    assert (sessions.opened, sessions.closed, engine.released) == (1, 1, ["ep-1"])
    assert len(set(engine.seeds)) == 3, "each turn has its own random stream"


def test_an_episode_whose_sandbox_was_replaced_counts_and_may_take_longer() -> None:
    class Recovering(ScriptedSessions):
        def __init__(self) -> None:
            super().__init__()
            self.recoveries = ["of an episode before"]

        async def step(self, action):
            if len(self.recoveries) == 1:
                await asyncio.sleep(0.1)  # twice the deadline of a step
                self.recoveries.append("of this one")
            return await super().step(action)

    trajectory = play(Recovering(), recovery_s=2.0)
    assert trajectory.outcome == Completed(1.0, True)
    assert trajectory.recoveries == 1
    assert isinstance(play(Recovering()).outcome, Void)


def test_what_was_sampled_is_never_tokenised_again() -> None:
    engine = ScriptedEngine()
    trajectory = play(ScriptedSessions(), engine)
    tokens = trajectory.token_ids()
    for prompt in engine.prompts:
        assert tokens[: len(prompt)] == prompt


def test_limits_truncate_and_count() -> None:
    assert play(ScriptedSessions(steps=9)).outcome == Truncated("turns", 0.0)
    assert play(ScriptedSessions(steps=9), max_context_tokens=20).outcome == Truncated("context", 0.0)


@pytest.mark.parametrize(
    ("fails", "cause"),
    [
        ({"open": errors.CapacityExceeded("full")}, VoidCause.PLATFORM),
        ({"step": errors.Diverged("another state")}, VoidCause.ENVIRONMENT_ERROR),
        ({"open": errors.PlatformUnavailable("away")}, VoidCause.PLATFORM),
        ({"open": None}, VoidCause.DEADLINE),
        ({"reset": errors.EnvironmentError("bug")}, VoidCause.RESET_FAILED),
        ({"reset": None}, VoidCause.DEADLINE),
        ({"step": errors.EnvironmentError("bug")}, VoidCause.ENVIRONMENT_ERROR),
        ({"step": errors.SandboxLost("gone")}, VoidCause.SANDBOX_LOST),
        ({"step": errors.LeaseExpired("over")}, VoidCause.LEASE_LOST),
        ({"step": errors.StaleEpoch("old")}, VoidCause.LEASE_LOST),
        ({"step": errors.NotFound("no lease")}, VoidCause.LEASE_LOST),
        ({"step": None}, VoidCause.DEADLINE),
    ],
    ids=str,
)
def test_what_breaks_voids_the_episode_with_its_cause(fails, cause) -> None:
    sessions = ScriptedSessions(**fails)
    outcome = play(sessions).outcome
    assert isinstance(outcome, Void)
    assert outcome.cause is cause
    assert sessions.opened == sessions.closed


@pytest.mark.parametrize(
    "error", [errors.NotFound("no such task"), errors.ImageNotFound("x"), errors.Unauthorized("x")]
)
def test_what_would_repeat_for_ever_is_raised(error) -> None:
    with pytest.raises(type(error)):
        play(ScriptedSessions(reset=error))


def test_an_action_the_environment_refuses_is_told_to_the_policy() -> None:
    trajectory = play(ScriptedSessions(step=errors.InvalidAction("not a command")), max_turns=2)
    assert trajectory.outcome == Truncated("turns", 0.0)
    assert trajectory.turns[1].observation == "not a command"


def test_a_sandbox_that_does_not_close_does_not_change_the_outcome() -> None:
    assert play(ScriptedSessions(close=None)).outcome == Completed(1.0, True)
    assert play(ScriptedSessions(close=errors.SandboxLost("gone"))).outcome == Completed(1.0, True)


def test_an_episode_as_a_whole_has_a_deadline() -> None:
    outcome = play(ScriptedSessions(step=None), step_s=60, episode_s=0.05).outcome
    assert isinstance(outcome, Void)
    assert outcome.cause is VoidCause.DEADLINE


def test_a_dead_or_silent_engine_is_no_void_episode() -> None:
    async def dead():
        raise EngineDead("worker ended")

    with pytest.raises(EngineDead):
        play(ScriptedSessions(), ScriptedEngine(dead))
    with pytest.raises(NoProgress, match="did not finish ep-1/0"):
        play(ScriptedSessions(), ScriptedEngine(lambda: asyncio.Event().wait()))


def test_a_cancelled_episode_stops_the_engine_and_gives_its_sandbox_back() -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def endless():
            started.set()
            await asyncio.Event().wait()

        sessions, engine = ScriptedSessions(), ScriptedEngine(endless)
        episode = player(sessions, engine, generate_s=60).episode(SPEC)
        task = asyncio.ensure_future(episode.play())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.aborted == ["ep-1/0"]
        assert engine.released == ["ep-1"]
        assert sessions.closed == 1
        assert episode.so_far(Truncated("cancelled")).sandbox_id == "sb-1"

    asyncio.run(main())
