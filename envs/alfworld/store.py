"""Where games come from: the folder ``prepare`` wrote, and official games where ``ALFWORLD_DATA`` points at them.

The folder holds ``world.json`` (what all games share) and one line per game in ``games/<split>.jsonl``; the number in a
task's name is the line. Official games, of which ``official/`` holds those that ``prepare`` found, are named after
their path: ``official/valid_seen/<task>/<trial>``. Their splits are called ``official_valid_seen`` and so on.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path

from envs.alfworld.world import TASK_TYPES, GameSpec, GameTexts, World, game_texts, load_world

SPLITS = {"train": 6, "demonstrations": 6, "heldout_seen": 4, "heldout_unseen": 4}
"""Our splits, and how many digits their task names have."""

OFFICIAL = "official"
OFFICIAL_SPLITS = ("official_train", "official_valid_seen", "official_valid_unseen")
"""What a bundle takes over."""
GAME_FILE = "game.tw-pddl"
TRAJECTORY_FILE = "traj_data.json"


def task_name(split: str, number: int) -> str:
    return f"{split}/{number:0{SPLITS[split]}d}"


class Store:
    """Read access to games by task name. Raises KeyError, naming the task, for one that is not there.

    ``official``: a folder of official games beside those that ``data`` holds.
    """

    def __init__(self, data: Path | None, official: Path | None) -> None:
        self._data = data
        self._official = [folder for folder in (official, data and data / OFFICIAL) if folder and folder.is_dir()]
        self._lines: dict[str, list[bytes]] = {}

    @cached_property
    def world(self) -> World:
        if self._data is None:
            raise KeyError("No generated games: set ROCK_ENV_DATA to the folder that envs.alfworld.prepare wrote.")
        return load_world(self._data / "world.json")

    def texts(self, task: str) -> GameTexts:
        """The texts of the game named ``task``."""
        split, _, rest = task.partition("/")
        if split == OFFICIAL:
            return self._official_texts(rest)
        return game_texts(self.spec(task), self.world)

    def spec(self, task: str) -> GameSpec:
        """The generated game named ``task``."""
        split, _, number = task.partition("/")
        if split not in SPLITS or not number.isdecimal() or task != task_name(split, int(number)):
            wanted = ", ".join(f"{name}/<{digits} digits>" for name, digits in SPLITS.items())
            raise KeyError(f"Unknown task {task!r}; expected {wanted} or {OFFICIAL}/<split>/<game>/<trial>.")
        lines = self._split(split)
        if int(number) >= len(lines):
            raise KeyError(f"Unknown task {task!r}; {split} has {len(lines)} games, numbered from 0.")
        return GameSpec.from_json(lines[int(number)])

    def tasks(self) -> dict[str, list[str]]:
        """All task names by split."""
        found = {s: [task_name(s, i) for i in range(len(self._split(s)))] for s in SPLITS} if self._data else {}
        for folder in reversed(self._official):
            found |= official_tasks(folder)
        return found

    def _split(self, split: str) -> list[bytes]:
        if split not in self._lines:
            if self._data is None:
                raise KeyError(f"No games of {split!r}: set ROCK_ENV_DATA to the folder envs.alfworld.prepare wrote.")
            path = self._data / "games" / f"{split}.jsonl"
            self._lines[split] = path.read_bytes().splitlines() if path.exists() else []
        return self._lines[split]

    def _official_texts(self, name: str) -> GameTexts:
        if not self._official:
            raise KeyError(f"No official games for 'official/{name}': set ALFWORLD_DATA and prepare the games again.")
        for root in self._official:
            folder = official_root(root) / name
            if ".." not in Path(name).parts and (folder / GAME_FILE).is_file():
                return read_official(folder)
        raise KeyError(f"Unknown task 'official/{name}': there is no {folder / GAME_FILE}.")


def official_split(name: str) -> str:
    """What we call the official split ``name``."""
    return f"{OFFICIAL}_{name}"


def official_root(data: Path) -> Path:
    """The folder with the official splits: ``json_2.1.1`` under ``ALFWORLD_DATA``, or the folder itself."""
    inner = data / "json_2.1.1"
    return inner if inner.is_dir() else data


def official_tasks(data: Path) -> dict[str, list[str]]:
    """Playable official games by ``official_<split>``, as ``AlfredTWEnv`` selects them: no movable receptacles, nothing
    sliced, one of the six task types, known to be solvable."""
    root = official_root(data)
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob(f"*/*/*/{GAME_FILE}")):
        name = path.parent.relative_to(root).as_posix()
        trajectory = path.parent / TRAJECTORY_FILE
        if "movable" in name or "Sliced" in name or not trajectory.is_file():
            continue
        if json.loads(trajectory.read_text())["task_type"] not in TASK_TYPES:
            continue
        if json.loads(path.read_text()).get("solvable"):
            found.setdefault(official_split(name.split("/")[0]), []).append(f"{OFFICIAL}/{name}")
    return found


def read_official(folder: Path) -> GameTexts:
    """The game in a folder of the official layout."""
    game = json.loads((folder / GAME_FILE).read_text())
    trajectory = json.loads((folder / TRAJECTORY_FILE).read_text())
    goal = game["grammar"].partition("Your task is to: ")[2].partition('."')[0]
    return GameTexts(
        domain=game["pddl_domain"],
        grammar=game["grammar"],
        problem=game["pddl_problem"],
        task_type=trajectory["task_type"],
        goal=goal,
        params=trajectory["pddl_params"],
        plan=tuple(game.get("walkthrough") or ()),
    )


def copy_official(source: Path, target: Path) -> dict[str, list[str]]:
    """Copy the playable games of the official splits from ``ALFWORLD_DATA`` to a folder of the same layout, without the
    recordings in their trajectories, which are most of the bytes. Returns the tasks by split."""
    tasks = {split: names for split, names in official_tasks(source).items() if split in OFFICIAL_SPLITS}
    for names in tasks.values():
        for name in names:
            inside = name.partition("/")[2]
            place = target / inside
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(official_root(source) / inside / GAME_FILE, place / GAME_FILE)
            trajectory = json.loads((official_root(source) / inside / TRAJECTORY_FILE).read_text())
            kept = {
                key: trajectory[key] for key in ("task_id", "task_type", "pddl_params", "scene") if key in trajectory
            }
            (place / TRAJECTORY_FILE).write_text(json.dumps(kept))
    return tasks


def write_official(folder: Path, spec: GameSpec, world: World) -> None:
    """Write a generated game as the two files of the official layout, which ``AlfredTWEnv`` can load."""
    texts = game_texts(spec, world)
    folder.mkdir(parents=True, exist_ok=True)
    game = {
        "pddl_domain": texts.domain,
        "grammar": texts.grammar,
        "pddl_problem": texts.problem,
        "walkthrough": list(texts.plan),
        "solvable": True,
    }
    trajectory = {
        "task_id": folder.name,
        "task_type": texts.task_type,
        "pddl_params": texts.params,
        "scene": {"floor_plan": f"FloorPlan{spec.scene}", "scene_num": spec.scene},
    }
    (folder / GAME_FILE).write_text(json.dumps(game))
    (folder / TRAJECTORY_FILE).write_text(json.dumps(trajectory, indent=1))


def official_name(spec: GameSpec, trial: str) -> str:
    """``<type>-<object>-<movable>-<target>-<scene>/<trial>``, as official games are named."""
    target = spec.parent or spec.toggle
    return f"{spec.task_type}-{spec.object}-None-{target}-{spec.scene}/{trial}"
