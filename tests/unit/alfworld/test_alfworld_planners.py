"""Demonstrations: our oracle, Fast Downward as its yardstick, and the seeker that knows only what it saw."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from envs.alfworld.downward import downward_plan
from envs.alfworld.engine import Game
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.planner import Unsolvable, plan, wins
from envs.alfworld.seeker import seek
from envs.alfworld.store import Store


def _game(store: Store, task: str) -> Game:
    texts = store.texts(task)
    return Game(texts.domain, texts.grammar, texts.problem)


@pytest.mark.parametrize("number", range(12))
def test_a_seeker_takes_only_what_it_has_been_shown(store: Store, number: int) -> None:
    task = f"heldout_unseen/{number:04d}"
    texts = store.texts(task)
    game = _game(store, task)
    commands = seek(game, texts.task_type, texts.params, 0, 200)
    assert wins(game, commands)
    play = game.start()
    shown = ""
    for command in commands:
        if taken := re.fullmatch(r"take (.+) from (.+)", command):
            assert re.search(rf"\b{taken[1]}\b", shown), f"{taken[1]} was never seen"
        if command.startswith("use "):
            assert command.removeprefix("use ") in shown
        shown += play.step(command)


def test_a_seeker_is_deterministic_and_its_seed_matters(store: Store) -> None:
    texts = store.texts("train/000005")
    game = _game(store, "train/000005")
    runs = [seek(game, texts.task_type, texts.params, seed, 200) for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len(set(runs)) > 1


def test_a_seeker_out_of_steps_gives_no_commands(store: Store) -> None:
    texts = store.texts("train/000005")
    assert seek(_game(store, "train/000005"), texts.task_type, texts.params, 0, 3) == ()


def test_the_environment_offers_all_planners(bundle: Path) -> None:
    env = AlfworldEnv(bundle / "data")
    env.reset("train/000001", 0, {})
    assert env.call("expert_plan", {"planner": "seeker", "seed": 1, "max_steps": 200})
    assert env.call("expert_plan", {"task": "train/000002"}) == list(env._store.spec("train/000002").plan)
    with pytest.raises(ValueError, match="seeker"):
        env.call("expert_plan", {"planner": "crystal ball"})


def test_plans_use_the_verbs_of_the_games_own_grammar(store: Store) -> None:
    texts = store.texts("train/000000")
    older = texts.grammar.replace('"move {o} to {r}"', '"put {o} in/on {r}"')
    game = Game(texts.domain, older, texts.problem)
    assert " in/on " in plan(game, texts.task_type, texts.params)[-1]
    assert " in/on " in seek(game, texts.task_type, texts.params, 0, 200)[-1]


@pytest.mark.usefixtures("shipped_engine")
@pytest.mark.parametrize("task", ["train/000001", "train/000006"])
def test_fast_downward_finds_nothing_shorter(store: Store, task: str) -> None:
    texts = store.texts(task)
    try:
        found = downward_plan(texts, 60.0)
    except Unsolvable as error:
        pytest.skip(f"Fast Downward gave up: {error}")
    assert wins(_game(store, task), found)
    assert len(texts.plan) <= len(found)


@pytest.mark.usefixtures("shipped_engine")
def test_fast_downwards_time_limit_holds(store: Store) -> None:
    with pytest.raises(Unsolvable, match=r"0\.05 s"):
        downward_plan(store.texts("train/000000"), 0.05)
