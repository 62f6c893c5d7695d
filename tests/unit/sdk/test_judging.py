"""An environment that is judged elsewhere: what counts is the judge's word, and what fails is raised."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rock.domain.errors import EnvironmentError as EnvironmentFailed
from rock.domain.errors import SandboxLost
from rock.sdk.judging import judged
from rock.sdk.session import Step

ANSWER = {
    "observation": "submitted",
    "reward": 7.0,
    "terminated": True,
    "truncated": False,
    "info": {"submission": "a patch", "success": True},
}


class Judge:
    """The part of a session that is used; ``said`` is the answer to the one step, or what it raises."""

    name = "judge"
    sandbox_id = "sb-judge"

    def __init__(self, said: Step | Exception) -> None:
        self.said = said
        self.calls: list[Any] = []

    async def __aenter__(self) -> Judge:
        self.calls.append("open")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.calls.append("close")

    async def reset(self) -> None:
        self.calls.append("reset")

    async def step(self, action: Any) -> Step:
        self.calls.append(action)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def judge_says(said: Step | Exception, **change: Any) -> tuple[dict[str, Any], Judge]:
    judge = Judge(said)
    return asyncio.run(judged(judge, {**ANSWER, **change})), judge  # type: ignore[arg-type]


def test_reward_and_success_are_the_judges():
    value, judge = judge_says(Step("no", 0.0, True, False, {"success": False}))
    assert (value["reward"], value["info"]["success"], value["observation"]) == (0.0, False, "submitted")
    assert value["info"]["verdict"] == {"observation": "no", "info": {"success": False}, "sandbox_id": "sb-judge"}
    assert judge.calls == ["open", "reset", "a patch", "close"]


def test_a_judge_that_fails_gives_no_reward_and_its_sandbox_is_given_back():
    judge = Judge(SandboxLost("gone"))
    with pytest.raises(SandboxLost):
        asyncio.run(judged(judge, ANSWER))  # type: ignore[arg-type]
    assert judge.calls[-1] == "close"


def test_an_end_without_a_submission_is_the_environments_fault():
    with pytest.raises(EnvironmentFailed, match=r"without info\['submission'\]"):
        judge_says(Step("yes", 1.0, True, False, {}), info={})


def test_a_judge_that_goes_on_is_at_fault():
    with pytest.raises(EnvironmentFailed, match="did not end"):
        judge_says(Step("hm", 1.0, False, False, {}))
