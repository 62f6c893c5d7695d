"""Countdown as an agent and the platform see it: instances, solutions, the judgement, the bundle."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.countdown.env import CountdownEnv
from envs.countdown.expression import evaluate
from envs.countdown.generate import LEVELS, Level, generate
from envs.countdown.instance import Instance, answer_in, judge
from envs.countdown.prepare import QUICK_SIZES, prepare
from envs.countdown.solver import attempt, solve, worked_solution

numbers = st.lists(st.integers(1, 30), min_size=2, max_size=5).map(tuple)
EACH = Instance((3, 7, 12), 87)


@given(numbers, st.integers(0, 2**32))
def test_whatever_a_combination_gives_is_found_again_in_steps_that_hold(given: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    target = attempt(given, rng)[-1].result.value
    steps = solve(given, target, use_all=True, rng=rng)
    assert steps is not None
    for step in steps:
        left, right = step.text.split("=")
        assert evaluate(left).value == int(right) > 0
    assert judge(Instance(given, target), steps[-1].result.text).correct


@given(numbers, st.integers(0, 2**32), st.integers(1, 200))
@settings(max_examples=60)
def test_a_solution_with_some_of_the_numbers_holds_too(given: tuple[int, ...], seed: int, target: int) -> None:
    steps = solve(given, target, use_all=False, rng=random.Random(seed))
    if steps:
        assert judge(Instance(given, target, "any"), steps[-1].result.text).correct
        assert all(step.result.text in steps[-1].result.text for step in steps)


def test_what_cannot_be_reached_has_no_solution() -> None:
    assert solve((1, 1), 5, use_all=True, rng=random.Random(0)) is None
    assert worked_solution((1, 1), 5, use_all=True, tries=3, rng=random.Random(0)) == ""


@given(numbers, st.integers(0, 2**32))
def test_an_expression_is_written_with_the_parentheses_it_needs(given: tuple[int, ...], seed: int) -> None:
    result = attempt(given, random.Random(seed))[-1].result
    found = evaluate(result.text)
    assert found.value == result.value
    assert Counter(found.literals) == Counter(given)


@pytest.mark.parametrize(
    ("answer", "correct", "form", "reason"),
    [
        ("12*7+3", True, 1.0, "correct"),
        ("(3 + 7 × 12)", True, 1.0, "correct"),
        ("12*7+3+0", False, 0.5, "not given"),
        ("87", False, 0.5, "not given"),
        ("12*7", False, 0.5, "not used: 3"),
        ("12*7+3*3/3", False, 0.5, "not given"),
        ("12+7+3", False, 1.0, "22, not 87"),
        ("12/7+3", False, 1.0, "33/7, not 87"),
        ("12*7+3=87", False, 0.0, "no expression"),
        ("12*7+3 and more", False, 0.0, "no expression"),
        ("", False, 0.0, "no expression"),
    ],
)
def test_the_judgement_is_strict_and_says_why(answer: str, correct: bool, form: float, reason: str) -> None:
    verdict = judge(EACH, f"7 + 12 = 19 no; answer: {answer}")
    assert (verdict.correct, verdict.form) == (correct, form)
    assert reason in verdict.reason


def test_a_number_given_twice_may_be_used_twice_but_not_thrice() -> None:
    twice = Instance((5, 5, 2), 15, "any")
    assert judge(twice, "5+5*2").correct
    assert "5" in judge(twice, "5+5+5").reason
    assert not judge(twice, "5+5+5").correct


def test_at_most_once_lets_numbers_be_left_out() -> None:
    assert judge(Instance((3, 7, 12), 84, "any"), "12*7").correct
    assert not judge(Instance((3, 7, 12), 84, "each"), "12*7").correct


def test_exact_fractions_count_and_rounding_does_not() -> None:
    assert judge(Instance((3, 8, 3, 8), 24), "8/(3-8/3)").correct
    assert not judge(Instance((1, 3, 3), 1), "1/3+3").correct


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so <answer>1+1</answer> or rather <answer> 2*1 </answer> done", "2*1"),
        ("Answer: 1+1\nno\nanswer : 2*1", "2*1"),
        ("some words\n\n2*1\n\n", "2*1"),
        ("", ""),
    ],
)
def test_the_last_answer_of_a_response_counts(response: str, answer: str) -> None:
    assert answer_in(response) == answer


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=300), st.none(), st.integers(), st.lists(st.integers(), max_size=3)))
def test_no_action_ever_raises_and_none_of_these_wins(action: object) -> None:
    env = CountdownEnv()
    env.reset("each:9973,9967,9949=500000", 0, {})
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, False)
    json.dumps(info)


@given(st.lists(st.integers(1, 9999), min_size=2, max_size=8), st.integers(1, 999999), st.sampled_from(["each", "any"]))
def test_a_task_is_its_own_description(given: list[int], target: int, rule: str) -> None:
    instance = Instance(tuple(given), target, rule)
    assert Instance.of(instance.task) == instance


@pytest.mark.parametrize(
    "task", ["", "train/1", "each:3=3", "each:3,7=0", "each:3,-7=4", "some:3,7=4", "each:3,07=4", "each:٣,7=4",
             "each:3,7=4\n", "each:" + ",".join("1" * 9) + "=4"],
)  # fmt: skip
def test_an_unknown_task_is_a_key_error_that_shows_a_right_one(task: str) -> None:
    with pytest.raises(KeyError, match="expected something like 'each:3,7,12=87'"):
        CountdownEnv().reset(task, 0, {})


def test_an_episode_is_one_turn() -> None:
    env = CountdownEnv()
    with pytest.raises(RuntimeError, match="reset"):
        env.step("12*7+3")
    question, info = env.reset(EACH.task, 0, {})
    assert question.startswith("Numbers: 3, 7, 12. Target: 87.\n")
    assert "each number exactly once" in question
    assert info == {"numbers": [3, 7, 12], "target": 87}
    assert env.step("12*7+3")[1:4] == (1.0, True, False)
    with pytest.raises(RuntimeError, match="over"):
        env.step("12*7+3")


def test_options_and_methods_that_do_not_exist_are_refused() -> None:
    env = CountdownEnv()
    with pytest.raises(ValueError, match="max_steps"):
        env.reset(EACH.task, 0, {"max_steps": 3})
    env.reset(EACH.task, 0, {})
    with pytest.raises(LookupError, match="expert_plan"):
        env.call("hint", {})
    with pytest.raises(ValueError, match="tries is -1"):
        env.call("expert_plan", {"tries": -1})


@pytest.mark.parametrize("level", LEVELS)
def test_every_generated_instance_is_of_its_level_and_its_demonstration_wins(level: str) -> None:
    env, rules = CountdownEnv(), LEVELS[level]
    for instance in generate(rules, 30, "a test", set()):
        assert len(instance.numbers) == rules.count
        assert set(instance.numbers) <= set(rules.numbers)
        assert instance.target in rules.targets
        assert instance.rule == rules.rule
        env.reset(instance.task, 0, {})
        (response,) = env.call("expert_plan", {"tries": 2})
        _, reward, terminated, _, info = env.step(response)
        assert (reward, terminated, info["success"], info["form"]) == (1.0, True, True, 1.0)


def test_failed_tries_come_before_the_solution_and_hold_as_arithmetic() -> None:
    env = CountdownEnv()
    env.reset(EACH.task, 0, {})
    responses = {env.call("expert_plan", {"tries": 3, "seed": seed})[0] for seed in range(30)}
    assert {response.count(" no;") for response in responses} == {0, 1, 2, 3}
    for response in responses:
        work, _, _ = response.partition("; answer")
        for line in work.replace(" yes", "").replace(" no", "").replace(";", ",").split(","):
            left, _, right = line.partition("=")
            assert evaluate(left).value == int(right)


def test_the_same_seed_generates_the_same_and_never_one_twice() -> None:
    known: set[tuple[str, tuple[int, ...], int]] = set()
    once = list(generate(LEVELS["tiny"], 200, "s", known))
    assert once == list(generate(LEVELS["tiny"], 200, "s", set()))
    more = list(generate(LEVELS["tiny"], 200, "other", known))
    keys = sorted(instance.key for instance in once + more)
    assert all(a != b for a, b in pairwise(keys))


def test_a_level_that_has_not_so_many_instances_says_so() -> None:
    with pytest.raises(ValueError, match="has not that many"):
        list(generate(Level(2, (1, 2), range(1, 4)), 50, "s", set()))


def test_the_bundle_lists_disjoint_splits_of_every_level_the_same_each_time(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "envs.countdown.prepare", "--out", str(tmp_path / "a"), "--quick"]
    subprocess.run(argv, check=True, cwd=Path(__file__).parents[3])
    tasks = prepare(tmp_path / "b", QUICK_SIZES)
    assert (tmp_path / "a" / "tasks.json").read_bytes() == (tmp_path / "b" / "tasks.json").read_bytes()
    assert set(tasks) == {f"{level}_{split}" for level in LEVELS for split in QUICK_SIZES}
    keys = [Instance.of(task).key for split in tasks.values() for task in split]
    assert len(keys) == len(set(keys))
