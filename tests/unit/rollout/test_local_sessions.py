"""Environments in a thread of this process: every call is answered, at once, whatever the environment raises."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rock.domain import errors
from roll_core.rollout.sessions import LocalSessions

ENTRY = f"{__name__}:Talker"
GATE = threading.Event()


class Talker:
    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return f"{task} {seed}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action == "wait":
            assert GATE.wait(30)
        elif action == "end":
            raise StopIteration("no more")
        elif action != "go":
            raise errors.InvalidAction(f"{action} is no action")
        return action, 1.0, False, False, {}

    def close(self) -> None: ...


def test_every_call_is_answered_with_its_own_answer() -> None:
    async def main() -> list[Any]:
        sessions = LocalSessions(ENTRY)

        async def play(number: int) -> tuple[Any, ...]:
            async with sessions.open(f"t{number}", number) as session:
                observation, _ = await session.reset()
                for wrong, expected in (("fly", errors.InvalidAction), ("end", errors.EnvironmentError)):
                    with pytest.raises(expected, match="fly" if wrong == "fly" else "no more"):
                        await session.step(wrong)
                return observation, (await session.step("go"))[0]

        try:
            async with asyncio.timeout(30):
                return await asyncio.gather(*(play(i) for i in range(200)))
        finally:
            await sessions.close()

    for _ in range(2):  # each in a loop of its own
        assert asyncio.run(main()) == [(f"t{i} {i}", "go") for i in range(200)]


def test_an_answer_does_not_wait_for_the_calls_behind_it() -> None:
    async def main() -> None:
        GATE.clear()
        sessions = LocalSessions(ENTRY)
        try:
            async with asyncio.timeout(30), sessions.open("a", 0) as first, sessions.open("b", 0) as second:
                quick, slow = (asyncio.create_task(s.step(a)) for s, a in ((first, "go"), (second, "wait")))
                assert (await quick)[0] == "go"
                assert not slow.done()
                GATE.set()
                assert (await slow)[0] == "wait"
        finally:
            GATE.set()
            await sessions.close()

    asyncio.run(main())
