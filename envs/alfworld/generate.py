"""Invents games: which scene, what lies where, which goal. The same seed gives the same game, byte for byte.

All six task types take turns. Every game is proven solvable: the plan stored with it was replayed to a win on the
evaluator. These games use ALFWorld's rules, texts and scenes but are **not** the benchmark's games: a score on them is
never a score on ``valid_seen`` or ``valid_unseen``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from envs.alfworld.engine import Game
from envs.alfworld.planner import plan
from envs.alfworld.wheel import free_pose
from envs.alfworld.world import TASK_TYPES, GameSpec, Receptacle, Thing, World, game_texts

_ROOMS = {
    "pick_and_place_simple": (0, 200, 300, 400),
    "pick_two_obj_and_place": (0, 200, 300, 400),
    "look_at_obj_in_light": (200, 300),
    "pick_clean_then_place_in_recep": (0, 400),
    "pick_heat_then_place_in_recep": (0,),
    "pick_cool_then_place_in_recep": (0,),
}
_TOOL = {  # task type -> (the furniture it needs, what the object must be)
    "pick_clean_then_place_in_recep": ("SinkBasin", "cleanable"),
    "pick_heat_then_place_in_recep": ("Microwave", "heatable"),
    "pick_cool_then_place_in_recep": ("Fridge", "coolable"),
}
_LAMP_STANDS = ("Desk", "SideTable", "Dresser", "Shelf", "CoffeeTable", "DiningTable", "TVStand", "ArmChair", "Sofa")
_PRESENT = 0.7  # of the kinds of objects a scene lists, how many a game has: rooms differ, and stay readable
_COPIES = (1, 1, 1, 2, 2, 3)  # how many of a kind; ALFWorld's own limit is 3


def generate(
    world: World, scenes: list[int], count: int, seed: str, seen: set[str] | None = None
) -> Iterator[GameSpec]:
    """``count`` games in ``scenes``, none of them in ``seen``, to which they are added."""
    seen = set() if seen is None else seen
    found = attempt = 0
    while found < count:
        task_type = TASK_TYPES[found % len(TASK_TYPES)]
        spec = invent(world, scenes, task_type, random.Random(f"{seed}/{attempt}"))
        attempt += 1
        if spec is None or spec.to_json() in seen:
            continue
        seen.add(spec.to_json())
        found += 1
        yield with_plan(spec, world)


def with_plan(spec: GameSpec, world: World) -> GameSpec:
    """The game with an oracle plan that was replayed to a win. Raises ``Unsolvable``."""
    texts = game_texts(spec, world)
    game = Game(texts.domain, texts.grammar, texts.problem)
    return replace(spec, plan=plan(game, spec.task_type, texts.params))


def invent(world: World, scenes: list[int], task_type: str, rng: random.Random) -> GameSpec | None:
    """A game without a plan, or None where the scene drawn has no goal of this type."""
    scene = rng.choice([s for s in scenes if s // 100 * 100 in _ROOMS[task_type]])
    furniture = world.scenes[scene]
    present = {r.type for r in furniture}
    lamps = [t for t in world.scene_objects[scene] if t in world.abilities["toggleable"]]
    kinds = [t for t in world.scene_objects[scene] if t not in lamps and _holders(world, furniture, t)]
    goals = list(_goals(world, task_type, kinds, present, lamps))
    if not goals:
        return None
    wanted = rng.choice(sorted({g[0] for g in goals}))  # first the object, so that rare ones are not drowned
    wanted, parent, toggle = rng.choice([g for g in goals if g[0] == wanted])
    things = _place_things(world, furniture, kinds, task_type, wanted, parent, rng)
    if things is None:
        return None
    if lamps:
        stands = [i for i, r in enumerate(furniture) if r.type in _LAMP_STANDS]
        if stands:
            lamp = toggle or rng.choice(lamps)
            things.append((lamp, rng.choice(stands)))
        elif toggle:
            return None
    template = rng.choice(world.goals[task_type]["templates"])
    return GameSpec(
        task_type=task_type,
        scene=scene,
        object=wanted,
        parent=parent,
        toggle=toggle,
        goal=template.format(obj=wanted.lower(), recep=parent.lower(), toggle=toggle.lower()),
        start=free_pose(rng, {r.pose for r in furniture}),
        things=_with_coordinates(things, rng),
    )


def _holders(world: World, furniture: list[Receptacle], kind: str) -> list[int]:
    return [i for i, r in enumerate(furniture) if kind in world.can_contain.get(r.type, ())]


def _goals(
    world: World, task_type: str, kinds: list[str], present: set[str], lamps: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Every (object, receptacle, lamp) type that makes sense as a goal; unused ones are empty."""
    if task_type == "look_at_obj_in_light":
        yield from ((kind, "", lamp) for kind in kinds for lamp in lamps)
        return
    tool, ability = _TOOL.get(task_type, ("", ""))
    if tool and tool not in present:
        return
    for kind in kinds:
        if not ability or kind in world.abilities[ability]:
            targets = sorted(r for r in present if r != tool and kind in world.can_contain.get(r, ()))
            yield from ((kind, parent, "") for parent in targets)


def _place_things(
    world: World,
    furniture: list[Receptacle],
    kinds: list[str],
    task_type: str,
    wanted: str,
    parent: str,
    rng: random.Random,
) -> list[tuple[str, int]] | None:
    """(type, receptacle) of every object. The wanted ones start outside the receptacles they are to be put in."""
    things = []
    for kind in kinds:
        holders = _holders(world, furniture, kind)
        copies = rng.choice(_COPIES)
        if kind == wanted:
            holders = [i for i in holders if furniture[i].type != parent]
            copies = max(copies, 2) if task_type == "pick_two_obj_and_place" else copies
            if not holders:
                return None
        elif rng.random() > _PRESENT:
            continue
        things += [(kind, rng.choice(holders)) for _ in range(copies)]
    return things


def _with_coordinates(things: list[tuple[str, int]], rng: random.Random) -> tuple[Thing, ...]:
    """Coordinates decide how objects of a kind are numbered, so they are drawn apart from the places."""
    spots = [(x, z) for x in range(-99, 100, 2) for z in range(-99, 100, 2)]
    chosen = rng.sample(spots, len(things))
    return tuple(Thing(kind, place, x, z) for (kind, place), (x, z) in zip(things, chosen, strict=True))
