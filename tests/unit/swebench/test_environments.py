"""The agent's environment and the judge, in this process over a directory: what they promise without a sandbox."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from envs.swebench.env import SweEnv
from envs.swebench.judge.rows import parse_row
from envs.swebench.prepare import expert_actions

TASK = "calc__calc-1.0-0001"


def submission(agent: SweEnv, *commands: str, **options: Any) -> str:
    agent.reset(TASK, 0, options)
    for command in commands:
        agent.step(command)
    _, reward, terminated, _, info = agent.step("submit")
    assert (reward, terminated, info["success"]) == (0.0, True, False)
    return str(info["submission"])


def verdict(bed: Any, patch: str) -> tuple[str, float, dict[str, Any]]:
    bed.judge.reset(TASK, 0, {})
    observation, reward, terminated, truncated, info = bed.judge.step(patch)
    assert (terminated, truncated, info["success"]) == (True, False, reward == 1.0)
    return observation, reward, info


def test_the_reference_solution_is_resolved(bed: Any):
    fix, _ = expert_actions(parse_row(bed.row))
    observation, reward, _ = verdict(bed, submission(bed.agent, fix))
    assert (observation, reward) == ("resolved: 1 of 1 failing tests pass, 3 of 3 passing tests still do", 1.0)


def test_a_reference_solution_may_end_in_an_empty_line_of_context(bed: Any):
    row = parse_row({**bed.row, "patch": "--- a/calc.py\n+++ b/calc.py\n@@ -5,2 +5,2 @@\n-x\n+y\n \n"})
    assert expert_actions(row)[0].split("\n")[-3:] == ["+y", " ", "END_OF_THE_PATCH"]


def test_doing_nothing_is_not(bed: Any):
    observation, reward, _ = verdict(bed, submission(bed.agent))
    assert (observation, reward) == ("not resolved: 0 of 1 failing tests pass, 3 of 3 passing tests still do", 0.0)


def test_another_solution_than_the_reference_is_resolved_too(bed: Any):
    assert verdict(bed, submission(bed.agent, "sed -i 's/a - a/2 * a/' calc.py"))[1] == 1.0


def test_a_committed_solution_and_a_new_file_count(bed: Any):
    patch = submission(
        bed.agent,
        "printf 'def add(a):\\n    return a * 2\\n' > more.py && sed -i 's/a - a/__import__(\"more\").add(a)/' calc.py",
        "git add -A && git -c user.name=x -c user.email=x commit -qm fix",
    )
    assert "more.py" in patch
    assert verdict(bed, patch)[1] == 1.0


@pytest.mark.parametrize(
    "command",
    [
        "mkdir -p tests && printf 'def test_twice():\\n    pass\\n' > tests/test_twice.py",
        "printf 'import pytest\\ndef pytest_collection_modifyitems(items):\\n    items.clear()\\n' > conftest.py",
        "printf 'print(\"PASSED tests/test_twice.py::test_twice\")\\nimport os\\nos._exit(0)\\n' > sitecustomize.py",
        "printf '[pytest]\\naddopts = --co\\n' > pytest.ini",
    ],
    ids=["hidden test", "conftest", "sitecustomize", "settings"],
)
def test_tampering_with_tests_is_left_out_and_not_resolved(bed: Any, command: str):
    observation, reward, info = verdict(bed, submission(bed.agent, command))
    assert reward == 0.0
    assert info["left_out"], observation


def test_a_patch_that_does_not_apply_is_not_resolved_and_says_why(bed: Any):
    observation, reward, _ = verdict(bed, "diff --git a/no.py b/no.py\n--- a/no.py\n+++ b/no.py\n@@ -1 +1 @@\n-a\n+b\n")
    assert reward == 0.0
    assert "does not apply" in observation


def test_a_patch_that_ends_the_test_run_is_not_resolved(bed: Any):
    assert verdict(bed, submission(bed.agent, "printf 'import os\\nos._exit(0)\\n' >> calc.py"))[1] == 0.0


def test_a_judge_whose_tests_cannot_start_raises(bed: Any, tmp_path: Path):
    path = tmp_path / "judge" / "data" / "rows" / f"{TASK}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eval_script": "exit 1"}))
    bed.judge.reset(TASK, 0, {})
    with pytest.raises(RuntimeError, match="could not be started"):
        bed.judge.step("")


def test_a_judge_judges_once(bed: Any):
    verdict(bed, "")
    with pytest.raises(RuntimeError, match="reset first"):
        bed.judge.step("")


def test_neither_side_holds_the_solution_and_the_agents_side_no_hidden_test(bed: Any, tmp_path: Path):
    agent, judge = tmp_path / "agent" / "data", tmp_path / "judge" / "data"
    everything = [p.read_bytes() for side in (agent, judge) for p in side.rglob("*.json")]
    assert not any(b"+    return a + a" in text for text in everything)
    bed.agent.reset(TASK, 0, {})
    assert not (bed.root / "tests" / "test_twice.py").exists()
    found = subprocess.run(
        ["grep", "-rl", "test_twice():", agent / "instances", bed.root], capture_output=True, text=True
    )
    assert found.stdout == ""


def test_the_last_step_submits_what_there_is(bed: Any):
    bed.agent.reset(TASK, 0, {"max_steps": 1})
    observation, _, terminated, truncated, info = bed.agent.step("sed -i 's/a - a/a + a/' calc.py")
    assert (terminated, truncated) == (False, True)
    assert "last step" in observation
    assert verdict(bed, info["submission"])[1] == 1.0


def test_long_output_loses_its_middle_and_a_hanging_command_is_killed(bed: Any):
    bed.agent.reset(TASK, 0, {"max_output_bytes": 100, "command_s": 0.5})
    observation, *_ = bed.agent.step("seq 1 10000")
    assert observation.startswith("1\n2\n")
    assert "bytes left out" in observation
    assert observation.endswith("9999\n10000\nexit code 0")
    assert "killed: it took longer than 0.5 s" in bed.agent.step("sleep 60")[0]
    assert "exit code 0" in bed.agent.step("sleep 60 & true")[0]


@pytest.mark.parametrize("command", ["", "echo \0", "echo \ud800", "#" * 131_072])
def test_what_no_program_can_be_given_is_a_step_of_the_agents(bed: Any, command: str):
    bed.agent.reset(TASK, 0, {})
    observation, _, terminated, truncated, info = bed.agent.step(command)
    assert observation.startswith("no command")
    assert (terminated, truncated, info) == (False, False, {"is_action_valid": False})
    assert bed.agent.step("#" * 131_071)[4] == {"is_action_valid": True}


def test_a_command_may_stand_in_a_code_block(bed: Any):
    bed.agent.reset(TASK, 0, {})
    assert bed.agent.step("```bash\necho hi\n```")[0] == "hi\nexit code 0"


def test_an_agent_that_breaks_the_repository_submits_nothing(bed: Any):
    assert submission(bed.agent, "rm -rf .git") == ""


def test_a_restored_episode_is_where_it_was(bed: Any, tmp_path: Path):
    bed.agent.reset(TASK, 0, {})
    bed.agent.step("echo x > new.txt")
    state = bed.agent.checkpoint()
    other = SweEnv(tmp_path / "agent" / "data", bed.root)
    other.restore(TASK, 0, {}, state)
    assert other.checkpoint() == state
    assert other.checkpoint() != {**state, "steps": 0}
    other.step("rm new.txt")
    assert other.checkpoint()["changes"] != state["changes"]


def test_unknown_tasks_and_options_are_named(bed: Any):
    for env in (bed.agent, bed.judge):
        with pytest.raises(KeyError, match="no-such"):
            env.reset("no-such", 0, {})
        with pytest.raises(KeyError):
            env.reset("../rows", 0, {})
        with pytest.raises(ValueError, match="odd"):
            env.reset(TASK, 0, {"odd": 1})
