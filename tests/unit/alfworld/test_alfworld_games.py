"""The generated games: same bytes every time, all task types, splits by scene, every one solvable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.alfworld.engine import Game
from envs.alfworld.names import demangle, display_names, mangle
from envs.alfworld.planner import Unsolvable, plan, wins
from envs.alfworld.prepare import QUICK_SIZES, prepare
from envs.alfworld.store import SPLITS, Store, official_tasks
from envs.alfworld.wheel import read_world
from envs.alfworld.world import TASK_TYPES, GameSpec, World, problem_text


def _specs(store: Store, split: str) -> list[GameSpec]:
    return [store.spec(task) for task in store.tasks()[split]]


def test_two_runs_write_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    prepare(tmp_path, QUICK_SIZES, official_layout=True)
    files = sorted(p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((bundle / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_tasks_json_lists_what_the_store_serves(bundle: Path, store: Store) -> None:
    listed = json.loads((bundle / "tasks.json").read_text())
    assert listed == store.tasks()
    assert {split: len(tasks) for split, tasks in listed.items()} == QUICK_SIZES


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_split_has_all_six_task_types_in_equal_parts(store: Store, split: str) -> None:
    types = [spec.task_type for spec in _specs(store, split)]
    assert all(types.count(t) == len(types) // 6 for t in TASK_TYPES)


def test_the_splits_are_disjoint_by_scene_and_by_game(store: Store) -> None:
    train, shown, seen, unseen = (_specs(store, split) for split in SPLITS)
    assert not {s.scene for s in [*train, *shown, *seen]} & {s.scene for s in unseen}
    assert {s.scene for s in unseen} <= set(store.world.test_scenes)
    games = [s.to_json() for s in [*train, *shown, *seen, *unseen]]
    assert len(set(games)) == len(games)


@pytest.mark.parametrize("split", list(SPLITS))
def test_every_stored_plan_wins_and_no_game_is_won_at_the_start(store: Store, split: str) -> None:
    for task in store.tasks()[split]:
        texts = store.texts(task)
        game = Game(texts.domain, texts.grammar, texts.problem)
        assert texts.plan
        assert len(texts.plan) <= 20
        assert wins(game, texts.plan)


def test_the_planner_says_when_there_is_no_plan(store: Store) -> None:
    texts = store.texts("train/000000")
    game = Game(texts.domain, texts.grammar, texts.problem)
    with pytest.raises(Unsolvable):
        plan(game, texts.task_type, texts.params | {"object_target": "Elephant"})


def test_a_spec_and_the_world_survive_being_written(store: Store) -> None:
    spec = store.spec("train/000001")
    assert GameSpec.from_json(spec.to_json()) == spec
    world = read_world()
    assert World.from_json(world.to_json()) == world == store.world


def test_official_paths_are_found_as_alfworld_finds_them(bundle: Path) -> None:
    found = official_tasks(bundle / "official")
    assert {split: len(tasks) for split, tasks in found.items()} == {f"official/{s}": n for s, n in QUICK_SIZES.items()}
    for tasks in found.values():
        assert not any("movable" in task or "Sliced" in task for task in tasks)


def test_names_are_mangled_and_restored() -> None:
    thor = "Sink|-01.90|+00.97|-01.50|SinkBasin"
    assert demangle(mangle(thor)) == thor
    names = display_names(mangle(i).lower() for i in (thor, "Apple|-00.10", "Apple|+00.10"))
    assert sorted(names.values()) == ["apple 1", "apple 2", "sinkbasin 1"]


def test_a_problem_declares_what_it_uses(store: Store) -> None:
    text = problem_text(store.spec("train/000002"), store.world)
    assert "|" not in text
    assert "#" not in text
    assert text.count("(") == text.count(")")
