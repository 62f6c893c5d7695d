"""Several episodes in one sandbox: kept while sound, never after a failure, given back at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rock.domain.errors import SandboxLost
from roll_core.rollout.reuse import ReusedSessions
from roll_core.rollout.sessions import Session, StepTuple


class Sandboxes:
    """A factory that counts what it gives out. The action "die" loses the sandbox, "hang" never returns, "wait" returns
    once ``go_on`` is set."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[str] = []
        self.go_on = asyncio.Event()

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        self.opened += 1
        sandbox = _Sandbox(f"sb-{self.opened}", self.go_on)
        try:
            yield sandbox
        finally:
            self.closed.append(sandbox.sandbox_id)

    async def tasks(self, split: str) -> Sequence[str]:
        return [split]

    async def digest(self) -> str:
        return "d"

    async def close(self) -> None:
        self.closed.append("factory")


class _Sandbox:
    def __init__(self, sandbox_id: str, go_on: asyncio.Event) -> None:
        self.sandbox_id = sandbox_id
        self._go_on = go_on

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return f"{task}/{seed}", {}

    async def step(self, action: Any) -> StepTuple:
        if action.startswith("wait"):
            await self._go_on.wait()
        if action.endswith("die"):
            raise SandboxLost("gone")
        if action == "hang":
            await asyncio.Event().wait()
        return "ok", 0.0, False, False, {}

    async def call(self, method: str, /, *, timeout_s: float | None = None, **args: Any) -> Any:
        return method, args


async def play(sessions: ReusedSessions, *actions: str) -> str:
    async with sessions.open("t", 0) as session:
        await session.reset("t", 0)
        for action in actions:
            await session.step(action)
        return session.sandbox_id


def test_a_sound_sandbox_plays_again_up_to_its_number_of_episodes() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 3)
        assert [await play(sessions, "a") for _ in range(7)] == ["sb-1"] * 3 + ["sb-2"] * 3 + ["sb-3"]
        assert inner.closed == ["sb-1", "sb-2"]
        await sessions.close()
        assert inner.closed == ["sb-1", "sb-2", "sb-3", "factory"]

    asyncio.run(main())


def test_episodes_at_the_same_time_have_sandboxes_of_their_own() -> None:
    async def main() -> None:
        sessions = ReusedSessions(Sandboxes(), 100)
        async with sessions.open("t", 0) as one, sessions.open("t", 0) as other:
            assert one.sandbox_id != other.sandbox_id
        assert {await play(sessions), await play(sessions)} <= {"sb-1", "sb-2"}
        await sessions.close()

    asyncio.run(main())


def test_a_sandbox_that_failed_is_never_played_in_again_even_if_the_error_was_handled() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100)
        async with sessions.open("t", 0) as session:
            with pytest.raises(SandboxLost):
                await session.step("die")
        assert inner.closed == ["sb-1"]
        assert await play(sessions) == "sb-2"
        await sessions.close()

    asyncio.run(main())


async def give_up(sessions: ReusedSessions, action: str) -> None:
    """Play until ``action`` is under way, then cancel the episode."""
    episode = asyncio.create_task(play(sessions, action))
    for _ in range(20):
        await asyncio.sleep(0)
    episode.cancel()
    await asyncio.wait([episode])
    assert episode.cancelled()


def test_a_sandbox_whose_step_was_cancelled_plays_again_when_the_step_has_ended() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100)
        await give_up(sessions, "wait")
        next_episode = asyncio.create_task(play(sessions, "a"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (inner.opened, next_episode.done()) == (1, False)  # it waits for that sandbox
        inner.go_on.set()
        assert await next_episode == "sb-1"
        assert inner.opened == 1
        await sessions.close()
        assert inner.closed == ["sb-1", "factory"]

    asyncio.run(main())


def test_who_finds_every_settling_sandbox_awaited_takes_a_fresh_one() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100)
        await give_up(sessions, "wait")
        first, second = asyncio.create_task(play(sessions, "a")), asyncio.create_task(play(sessions, "a"))
        assert await second == "sb-2"
        inner.go_on.set()
        assert await first in {"sb-1", "sb-2"}
        await sessions.close()

    asyncio.run(main())


@pytest.mark.parametrize("action", ["hang", "wait, then die"])
def test_a_sandbox_whose_cancelled_step_does_not_end_well_is_never_played_in_again(action: str) -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100, settle_s=0.01)
        await give_up(sessions, action)
        inner.go_on.set()
        assert await play(sessions, "a") == "sb-2"
        assert inner.closed == ["sb-1"]
        await sessions.close()

    asyncio.run(main())


def test_the_last_episode_of_a_sandbox_leaves_nothing_to_wait_for() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 1)
        await give_up(sessions, "hang")
        assert inner.closed == ["sb-1"]
        await sessions.close()

    asyncio.run(main())


def test_closing_does_not_wait_for_a_step_that_hangs() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100, settle_s=3600)
        await give_up(sessions, "hang")
        async with asyncio.timeout(10):
            await sessions.close()
        assert inner.closed == ["sb-1", "factory"]

    asyncio.run(main())


def test_a_sandbox_whose_episode_was_given_up_between_two_calls_plays_again_at_once() -> None:
    async def main() -> None:
        sessions = ReusedSessions(Sandboxes(), 100)

        async def think() -> None:
            async with sessions.open("t", 0) as session:
                await session.step("a")
                await asyncio.Event().wait()  # the sandbox is not in a call

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(think(), 0.01)
        assert await play(sessions) == "sb-1"
        await sessions.close()

    asyncio.run(main())


def test_a_sandbox_still_played_in_when_all_is_closed_is_given_back_by_its_episode() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100)
        async with sessions.open("t", 0):
            await sessions.close()
            assert inner.closed == ["factory"]
        assert inner.closed == ["factory", "sb-1"]

    asyncio.run(main())
