"""The environment as an agent and the platform see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld.engine import NOTHING_HAPPENS, Game
from envs.alfworld.env import MAX_STEPS, AlfworldEnv
from envs.alfworld.store import Store
from envs.alfworld.world import TASK_TYPES


@pytest.fixture
def env(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> AlfworldEnv:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("ROCK_ENV_DATA", str(bundle / "data"))
    return AlfworldEnv()


def test_reset_tells_the_task_and_what_can_be_done(env: AlfworldEnv) -> None:
    observation, info = env.reset("train/000003", 0, {})
    assert observation.startswith("-= Welcome to TextWorld, ALFRED! =-")
    assert f"Your task is to: {info['goal']}." in observation
    assert info["task_type"] in TASK_TYPES
    assert info["admissible_commands"] == sorted(info["admissible_commands"])
    assert "look" in info["admissible_commands"]
    json.dumps(info)


@pytest.mark.parametrize("number", range(12))
def test_the_expert_plan_wins_with_its_last_step_and_pays_one(env: AlfworldEnv, number: int) -> None:
    env.reset(f"train/{number:06d}", 0, {})
    plan = env.call("expert_plan", {})
    for command in plan[:-1]:
        _, reward, terminated, truncated, info = env.step(command)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert "success" not in info
    _, reward, terminated, truncated, info = env.step(plan[-1])
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    with pytest.raises(RuntimeError, match="over"):
        env.step("look")


def test_the_step_limit_truncates_without_reward(env: AlfworldEnv) -> None:
    env.reset("train/000000", 0, {})
    results = [env.step("look") for _ in range(MAX_STEPS)]
    assert [r[3] for r in results] == [False] * (MAX_STEPS - 1) + [True]
    assert results[-1][1] == 0.0
    assert results[-1][4]["success"] is False


def test_the_step_limit_is_an_option(env: AlfworldEnv) -> None:
    env.reset("train/000000", 0, {"max_steps": 2})
    assert [env.step("look")[3] for _ in range(2)] == [False, True]


def test_the_last_allowed_step_may_still_win(env: AlfworldEnv) -> None:
    env.reset("train/000000", 0, {})
    plan = env.call("expert_plan", {})
    env.reset("train/000000", 0, {"max_steps": len(plan)})
    assert [env.step(c) for c in plan][-1][1:4] == (1.0, True, False)


def test_a_command_that_is_not_admissible_changes_nothing(env: AlfworldEnv) -> None:
    _, before = env.reset("train/000000", 0, {})
    observation, reward, terminated, _, after = env.step("take the moon")
    assert (observation, reward, terminated) == (NOTHING_HAPPENS, 0.0, False)
    assert after["admissible_commands"] == before["admissible_commands"] == env.call("admissible", {})


def test_admissible_commands_can_be_left_out(env: AlfworldEnv) -> None:
    _, info = env.reset("train/000000", 0, {"admissible": False})
    assert "admissible_commands" not in info
    assert "admissible_commands" not in env.step("look")[4]


def test_the_same_task_and_seed_give_the_same_episode(env: AlfworldEnv, bundle: Path) -> None:
    def episode(env: AlfworldEnv) -> list[object]:
        seen: list[object] = [env.reset("heldout_unseen/0005", 7, {})]
        return seen + [env.step(command) for command in env.call("expert_plan", {})]

    assert episode(env) == episode(env) == episode(AlfworldEnv(bundle / "data"))


@pytest.mark.parametrize(
    "task", ["train/999999", "nowhere/0001", "train/x", "train", "", "official/a/b/c", "train/-1", "train/٣"]
)
def test_an_unknown_task_is_a_key_error_that_names_it(env: AlfworldEnv, task: str) -> None:
    with pytest.raises(KeyError, match=task.replace("/", ".") or "''"):
        env.reset(task, 0, {})


@pytest.mark.parametrize("options", [{"engine": "unity"}, {"max_steps": 0}, {"max_steps": "many"}, {"max_steps": True}])
def test_an_option_out_of_range_is_refused(env: AlfworldEnv, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        env.reset("train/000000", 0, options)


def test_an_unknown_method_is_a_lookup_error(env: AlfworldEnv) -> None:
    with pytest.raises(LookupError, match="expert_plan"):
        env.call("win", {})


def test_a_step_before_the_first_reset_is_refused(env: AlfworldEnv) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        env.step("look")


@settings(max_examples=60)
@given(actions=st.lists(st.one_of(st.text(max_size=40), st.none(), st.integers(), st.just("look")), max_size=20))
def test_no_action_ever_raises(store: Store, actions: list[object]) -> None:
    texts = store.texts("train/000004")
    play = Game(texts.domain, texts.grammar, texts.problem).start()
    known = set(play.admissible())
    for action in actions:
        answer = play.step(action if isinstance(action, str) else str(action))
        assert (answer == NOTHING_HAPPENS) == (str(action).strip() not in known)
        known = set(play.admissible())


def test_unusual_actions_are_ordinary_steps(env: AlfworldEnv) -> None:
    env.reset("train/000000", 0, {})
    for action in (None, 3, {"a": 1}, ["look"], "\x00", "look" * 10_000):
        assert env.step(action)[0] == NOTHING_HAPPENS


def test_the_games_play_on_the_standard_library_alone(bundle: Path) -> None:
    root = Path(__file__).parents[3]
    code = (
        "import sys; from envs.alfworld.env import AlfworldEnv; env = AlfworldEnv(); env.reset('train/000000', 0, {});"
        "print([env.step(c)[1] for c in env.call('expert_plan', {})][-1],"
        "[m for m in sys.modules if m.split('.')[0] in ('textworld', 'alfworld', 'numpy', 'tatsu', 'fast_downward')])"
    )
    environ = {"PYTHONPATH": str(root), "ROCK_ENV_DATA": str(bundle / "data")}
    argv = [sys.executable, "-S", "-c", code]  # -S: no site-packages
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "1.0 []", done.stderr
