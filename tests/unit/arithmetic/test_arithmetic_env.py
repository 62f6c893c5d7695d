"""Arithmetic as an agent and the platform see it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.arithmetic.env import ArithmeticEnv
from envs.arithmetic.prepare import QUICK_SIZES, prepare
from envs.arithmetic.problems import KINDS, Problem

problems = st.builds(
    lambda kind, digits, seed: Problem(kind, KINDS[kind].draw(random.Random(seed), digits)),
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 6),
    st.integers(0, 2**32),
)


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("sum:17,25", "What is 17 + 25?", 42),
        ("difference:30,30", "What is 30 - 30?", 0),
        ("product:12,11", "What is 12 * 11?", 132),
        ("mod:123,7", "What is the remainder of 123 divided by 7?", 4),
        ("digit_sum:4821", "What is the sum of the digits of 4821?", 15),
        ("reverse:4820", "What number has the digits of 4820 in reverse order?", 284),
        ("largest:3,9,2,9", "Which is the largest of 3, 9, 2 and 9?", 9),
    ],
)
def test_a_task_asks_its_question_and_knows_the_answer(task: str, question: str, answer: int) -> None:
    env = ArithmeticEnv()
    assert env.reset(task, 0, {}) == (question, {"kind": task.split(":")[0]})
    assert env.step(f"let me see\n{answer}")[1:4] == (1.0, True, False)
    env.reset(task, 0, {})
    assert env.step(str(answer + 1))[1:4] == (0.0, True, False)


@given(problems)
def test_the_worked_response_wins_and_every_step_in_it_holds(problem: Problem) -> None:
    env = ArithmeticEnv()
    env.reset(problem.task, 0, {})
    (response,) = env.call("expert_plan", {})
    for left, right in re.findall(r"([\d +*-]+) = (\d+)", response):
        assert eval(left) == int(right), response
    _, reward, _, _, info = env.step(response)
    assert (reward, info) == (1.0, {"success": True, "is_action_valid": True})


@given(problems)
def test_a_task_is_its_own_description(problem: Problem) -> None:
    assert Problem.of(problem.task) == problem


@pytest.mark.parametrize(
    "response", ["42.", "42 apples", "forty-two", "4 2", "٤٢", "answer: 42\nanswer:", "", "9" * 99]
)
def test_what_is_not_just_the_number_is_no_answer(response: str) -> None:
    env = ArithmeticEnv()
    env.reset("sum:17,25", 0, {})
    _, reward, _, _, info = env.step(response)
    assert (reward, info) == (0.0, {"success": False, "is_action_valid": False})


@given(st.one_of(st.text(max_size=100), st.none(), st.lists(st.integers(), max_size=3)))
def test_no_action_ever_raises(action: object) -> None:
    env = ArithmeticEnv()
    env.reset("product:9999999,9999998", 0, {})
    json.dumps(env.step(action))


@pytest.mark.parametrize(
    "task", ["", "sum", "sum:1", "sum:1,2,3", "power:2,3", "sum:01,2", "sum:1,-2", "mod:5,0", "difference:1,2",
             "sum:1,2\n", "sum:1234567890,1", "sum:٣,1"],
)  # fmt: skip
def test_an_unknown_task_is_a_key_error_that_shows_a_right_one(task: str) -> None:
    with pytest.raises(KeyError, match="'sum:17,25'"):
        ArithmeticEnv().reset(task, 0, {})


def test_misuse_is_told() -> None:
    env = ArithmeticEnv()
    with pytest.raises(RuntimeError, match="reset"):
        env.step("1")
    with pytest.raises(ValueError, match="no options"):
        env.reset("sum:1,2", 0, {"max_steps": 1})
    env.reset("sum:1,2", 0, {})
    with pytest.raises(LookupError, match="expert_plan"):
        env.call("hint", {})
    env.step("3")
    with pytest.raises(RuntimeError, match="over"):
        env.step("3")


def test_the_bundle_lists_disjoint_splits_the_same_each_time(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "envs.arithmetic.prepare", "--out", str(tmp_path / "a"), "--quick"]
    subprocess.run(argv, check=True, cwd=Path(__file__).parents[3])
    tasks = prepare(tmp_path / "b", QUICK_SIZES)
    assert (tmp_path / "a" / "tasks.json").read_bytes() == (tmp_path / "b" / "tasks.json").read_bytes()
    everything = [task for split in QUICK_SIZES for task in tasks[split]]
    assert len(everything) == len(set(everything)) == len(KINDS) * sum(QUICK_SIZES.values())
    for kind in KINDS:
        assert tasks[f"{kind}_train"] == [task for task in tasks["train"] if task.startswith(f"{kind}:")]
