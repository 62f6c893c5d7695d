"""Reads what the ``alfworld`` wheel carries (it need not be importable as a whole: no torch, no simulator).

Taken from it: the PDDL domain, the text grammar, the goal templates, the tables of which object goes where, and of 120
scenes the furniture with the poses to reach it and the kinds of objects found there. Furniture that a scene lists
without a pose (stove burners, a coffee machine, …) is put at places of its own.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

from envs.alfworld.world import TASK_TYPES, Receptacle, World

_GRID_M = 0.25
_COUNT_WITHOUT_POSE = {"StoveBurner": 4}


def wheel_path() -> Path:
    """The installed package's folder, found without importing it."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The package 'alfworld' is not installed: pip install --no-deps alfworld==0.4.2")
    return Path(next(iter(spec.submodule_search_locations)))


def read_world() -> World:
    """The :class:`World` of the installed wheel; the same for the same wheel, byte for byte."""
    root = wheel_path()
    constants = _module(root / "gen" / "constants.py")
    goals = _module(root / "gen" / "goal_library.py").gdict
    furniture = set(constants.RECEPTACLES) - set(constants.MOVABLE_RECEPTACLES)
    numbers = sorted(constants.SCENE_NUMBERS)
    can_contain = {k: sorted(v) for k, v in sorted(constants.VAL_RECEPTACLE_OBJECTS.items()) if k in furniture}
    abilities = {name.lower(): sorted(types) for name, types in sorted(constants.VAL_ACTION_OBJECTS.items())}
    return World(
        domain=(root / "data" / "alfred.pddl").read_text(),
        grammar=(root / "data" / "alfred.twl2").read_text(),
        goals={name: {"pddl": goals[name]["pddl"], "templates": goals[name]["templates"]} for name in TASK_TYPES},
        can_contain=can_contain,
        openable=sorted(set(constants.OPENABLE_CLASS_LIST) & furniture),
        movable=sorted(constants.MOVABLE_RECEPTACLES),
        abilities=abilities,
        scenes={n: _furniture(root, n, furniture) for n in numbers},
        scene_objects={n: sorted(_scene_objects(root, n) - furniture) for n in numbers},
        train_scenes=sorted(constants.TRAIN_SCENE_NUMBERS),
        test_scenes=sorted(constants.TEST_SCENE_NUMBERS),
    )


def _module(path: Path) -> ModuleType:
    """A module by its file: importing it through its package would write to the user's home."""
    spec = importlib.util.spec_from_file_location(f"_alfworld_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"The alfworld wheel has no {path}; expected version 0.4.2.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _scene_objects(root: Path, number: int) -> set[str]:
    return set(json.loads((root / "gen" / "layouts" / f"FloorPlan{number}-objects.json").read_text()))


def _furniture(root: Path, number: int, kinds: set[str]) -> list[Receptacle]:
    points = json.loads((root / "gen" / "layouts" / f"FloorPlan{number}-openable.json").read_text())
    found = []
    for thor_id, (x, z, rotation, horizon) in sorted(points.items()):
        parts = thor_id.split("|")
        kind = parts[-1] if parts[-1] in kinds else parts[0]
        if kind in kinds:
            found.append(Receptacle(thor_id, kind, (round(x / _GRID_M), round(z / _GRID_M), rotation, horizon)))
    posed = {r.type for r in found}
    rng = random.Random(f"furniture of FloorPlan{number}")
    taken = {r.pose for r in found}
    for kind in sorted((_scene_objects(root, number) & kinds) - posed):
        for _ in range(_COUNT_WITHOUT_POSE.get(kind, 1)):
            pose = free_pose(rng, taken)
            taken.add(pose)
            x, z = pose[0] * _GRID_M, pose[1] * _GRID_M
            found.append(Receptacle(f"{kind}|{x:+06.2f}|+00.90|{z:+06.2f}", kind, pose))
    return found


def free_pose(rng: random.Random, taken: set[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """A pose that no one has."""
    while True:
        pose = (rng.randint(-12, 12), rng.randint(-12, 12), rng.choice((0, 90, 180, 270)), 30)
        if pose not in taken:
            return pose
