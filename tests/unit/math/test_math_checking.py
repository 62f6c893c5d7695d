"""Answers: found in a response, compared by the library, and never judged by a checker that is broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.math.answers import MAX_CHARACTERS, final_answer
from envs.math.dataset import Columns
from envs.math.env import MathEnv
from envs.math.prepare import SAMPLE, prepare
from envs.math.verifier import Verifier, VerifierBroken


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("math")
    prepare(out, SAMPLE, Columns(), quick=True)
    return out


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and an open \boxed{4", "3"),
        ("<answer> 7 </answer>", "7"),
        ("Natalia sold 48+24 = 72 clips.\n#### 72", "72"),
        ("The answer is: $12$.\nGood.", "12"),
        ("first\n\n 42 \n\n", "42"),
        ("", ""),
        ("9" * (MAX_CHARACTERS + 1), ""),
    ],
)
def test_the_final_answer_is_found(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@given(st.text(max_size=400))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    assert len(final_answer(text)) <= MAX_CHARACTERS


@given(st.text(st.characters(codec="ascii", exclude_characters="{}$.\\"), min_size=1, max_size=40))
def test_what_is_boxed_last_is_the_answer(answer: str) -> None:
    assert final_answer(f"\\boxed{{0}} then \\boxed{{{answer}}} and so on") in (answer.strip(), "0")


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("42", "42.0", "right"),
        ("42", "43", "wrong"),
        (r"\frac{25}{24}", "25/24", "right"),
        (r"\frac{25}{24}", r"1\frac{1}{24}", "right"),
        (r"\{-3, 8\}", r"\{8, -3\}", "right"),
        ("2x^2 + 7x - 15", "(2x-3)(x+5)", "right"),
        (r"25\pi", "78.5", "wrong"),
        ("2", "{{{{", "no_answer"),
        ("?", "?", "bad_gold"),
    ],
)
def test_answers_are_equal_by_what_they_mean(verifier: Verifier, gold: str, answer: str, verdict: str) -> None:
    assert verifier.verdict(gold, answer) == verdict


@pytest.mark.parametrize("bomb", ["9^{9^{9^{9}}}", "10^{10^{10}}"])
def test_an_answer_that_takes_for_ever_is_costly_and_the_next_one_is_judged(verifier: Verifier, bomb: str) -> None:
    assert verifier.verdict("2", bomb) == "costly"
    assert verifier.verdict("2", "2") == "right"


def program(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "checker.py"
    path.write_text(text)
    return [sys.executable, str(path)]


BROKEN = {
    "cannot be started": ("", "cannot be started"),
    "dies at once": ("raise SystemExit(3)", "status 3"),
    "dies when asked": ("input(); print('{}', flush=True); input(); raise SystemExit(4)", "status 4"),
    "is silent": ("input(); print('{}', flush=True); input(); input()", "silent"),
    "talks nonsense": ("input(); print('{}', flush=True); input(); print('yes', flush=True); input()", "said 'yes'"),
    "is never ready": ("input(); input()", "not ready"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checker_is_an_error_and_no_reward(how: str, tmp_path: Path, bundle: Path) -> None:
    text, message = BROKEN[how]
    command = program(tmp_path, text) if text else [str(tmp_path / "nowhere")]
    short = {"is silent": {"wall_s": 0.5}, "is never ready": {"start_s": 0.5}}.get(how, {})
    env = MathEnv(bundle / "data", Verifier(command, **short))
    env.reset("train/000000", 0, {})
    with pytest.raises(VerifierBroken, match=message):
        env.step("\\boxed{1}")
    env.close()


def test_a_checker_that_computes_without_end_is_killed_and_blames_the_answer(tmp_path: Path) -> None:
    verifier = Verifier(program(tmp_path, "input(); print('{}', flush=True); input()\nwhile True: pass"), cpu_s=0.1)
    assert verifier.verdict("1", "1") == "costly"
    verifier.close()


def test_an_episode_of_the_sample_is_won_by_its_reference_in_other_words(bundle: Path) -> None:
    env = MathEnv(bundle / "data")
    question, _ = env.reset("train/000001", 0, {})
    assert question.startswith(r"What is $\frac{2}{3} + \frac{3}{8}$")
    assert question.endswith(r"\boxed{}.")
    assert env.step(r"Eighths and thirds… \boxed{1\frac{1}{24}}")[1:] == (
        1.0, True, False, {"success": True, "is_action_valid": True, "answer": r"1\frac{1}{24}"},
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="reset"):
        env.step("1")
    env.reset("train/000001", 0, {"instruction": ""})
    observation, reward, _, _, info = env.step("")
    assert (observation, reward, info["is_action_valid"]) == ("no answer could be read", 0.0, False)
    env.reset("train/000001", 0, {})
    assert env.step(env.call("expert_plan", {})[0])[1] == 1.0
    env.close()


@pytest.mark.parametrize(
    "task", ["", "train", "train/x", "train/999999", "train/-1", "../data/train/000000", "train/٣"]
)
def test_an_unknown_task_is_a_key_error(task: str, bundle: Path) -> None:
    with pytest.raises(KeyError, match="expected something like 'train/000012'"):
        MathEnv(bundle / "data").reset(task, 0, {})


def test_unknown_options_and_methods_are_refused(bundle: Path) -> None:
    env = MathEnv(bundle / "data")
    with pytest.raises(ValueError, match="expected instruction"):
        env.reset("train/000000", 0, {"hint": 1})
    with pytest.raises(LookupError, match="expert_plan"):
        env.call("hint", {})
