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
    """A factory that counts what it gives out; an action "die" loses the sandbox, "hang" never returns."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[str] = []

    @asynccontextmanager
    async def open(self, task: str, seed: int) -> AsyncIterator[Session]:
        self.opened += 1
        sandbox = _Sandbox(f"sb-{self.opened}")
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
    def __init__(self, sandbox_id: str) -> None:
        self.sandbox_id = sandbox_id

    async def reset(
        self, task: str | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return f"{task}/{seed}", {}

    async def step(self, action: Any) -> StepTuple:
        if action == "die":
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


def test_a_step_that_was_cancelled_ends_the_sandbox_and_a_pause_between_steps_does_not() -> None:
    async def main() -> None:
        inner = Sandboxes()
        sessions = ReusedSessions(inner, 100)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await play(sessions, "hang")
        assert inner.closed == ["sb-1"]

        async def think() -> None:
            async with sessions.open("t", 0) as session:
                await session.step("a")
                await asyncio.Event().wait()  # the sandbox is not in a call

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(think(), 0.01)
        assert await play(sessions) == "sb-2"
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
