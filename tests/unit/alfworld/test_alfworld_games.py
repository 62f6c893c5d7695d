"""The generated games: same bytes every time, all task types, splits by scene, every one solvable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.alfworld.engine import Game
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.names import demangle, display_names, mangle
from envs.alfworld.planner import Unsolvable, plan, wins
from envs.alfworld.prepare import QUICK_SIZES, prepare
from envs.alfworld.store import SPLITS, TRAJECTORY_FILE, Store, official_name, official_tasks, write_official
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
    assert {split: len(tasks) for split, tasks in found.items()} == {f"official_{s}": n for s, n in QUICK_SIZES.items()}
    for tasks in found.values():
        assert not any("movable" in task or "Sliced" in task for task in tasks)


@pytest.fixture(scope="module")
def with_official(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """A bundle prepared where ``ALFWORLD_DATA`` holds two games a split, and some that no benchmark plays."""
    root = tmp_path_factory.mktemp("official")
    for split, ours in {"train": "train", "valid_seen": "heldout_seen", "valid_unseen": "heldout_unseen"}.items():
        specs = _specs(store, ours)[:2]
        for number, spec in enumerate(specs):
            name = official_name(spec, f"trial_{number}")
            for place in (name, f"movable-{name}", f"Sliced-{name}"):
                write_official(root / "json_2.1.1" / split / place, spec, store.world)
        trajectory = root / "json_2.1.1" / split / official_name(specs[0], "trial_0") / TRAJECTORY_FILE
        trajectory.write_text(json.dumps(json.loads(trajectory.read_text()) | {"images": ["x" * 100_000]}))
    write_official(root / "json_2.1.1" / "valid_train" / "a" / "trial_0", _specs(store, "train")[0], store.world)
    out = tmp_path_factory.mktemp("bundle")
    prepare(out, dict.fromkeys(SPLITS, 1), official=root)
    return out


def test_official_games_are_copied_into_the_bundle(with_official: Path) -> None:
    listed = json.loads((with_official / "tasks.json").read_text())
    splits = {split: len(tasks) for split, tasks in listed.items() if split.startswith("official")}
    assert splits == {"official_train": 2, "official_valid_seen": 2, "official_valid_unseen": 2}
    assert listed == Store(with_official / "data", None).tasks()
    assert not [task for tasks in listed.values() for task in tasks if "movable" in task or "Sliced" in task]
    size_bytes = sum(path.stat().st_size for path in with_official.rglob(TRAJECTORY_FILE))
    assert size_bytes < 50_000, "recordings stay behind"


def test_copied_official_games_are_played_and_won(with_official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    env = AlfworldEnv(with_official / "data")
    for task in json.loads((with_official / "tasks.json").read_text())["official_valid_unseen"]:
        assert task.startswith("official/valid_unseen/")
        env.reset(task, 0, {})
        assert [env.step(command) for command in env.call("expert_plan", {})][-1][1:3] == (1.0, True)
    with pytest.raises(KeyError, match="there is no"):
        env.reset("official/valid_unseen/../../x/y", 0, {})


def test_a_folder_without_official_games_adds_no_splits(tmp_path: Path) -> None:
    tasks = prepare(tmp_path / "out", dict.fromkeys(SPLITS, 1), official=tmp_path)
    assert set(tasks) == set(SPLITS)


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
