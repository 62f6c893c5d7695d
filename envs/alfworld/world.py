"""What a generated game is: a scene of the ALFWorld wheel, things put into it, and a goal. Standard library only.

A :class:`GameSpec` is a few hundred bytes; :func:`game_texts` turns it into the same texts that an official game file
carries (domain, grammar with the goal filled in, problem). Objects in closed receptacles are hidden until the agent
opens them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envs.alfworld.names import mangle

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)

# Types that the domain's text names: a problem must declare them even if no object has them.
_NAMED_RECEPTACLE_TYPES = ("SinkBasin", "Microwave", "Fridge")
_NAMED_OBJECT_TYPES = ("Knife", "ButterKnife")


@dataclass(frozen=True)
class Receptacle:
    """A piece of furniture: AI2-THOR id, type, and the pose to reach it from (x and z in grid steps, then degrees)."""

    id: str
    type: str
    pose: tuple[int, int, int, int]


@dataclass(frozen=True)
class World:
    """What all games share. Tables map a type to the types it concerns."""

    domain: str
    grammar: str
    goals: dict[str, dict[str, Any]]
    can_contain: dict[str, list[str]]
    openable: list[str]
    movable: list[str]
    abilities: dict[str, list[str]]
    scenes: dict[int, list[Receptacle]]
    scene_objects: dict[int, list[str]]
    train_scenes: list[int]
    test_scenes: list[int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> World:
        raw = json.loads(text)
        raw["scenes"] = {
            int(n): [Receptacle(r["id"], r["type"], tuple(r["pose"])) for r in rs] for n, rs in raw["scenes"].items()
        }
        raw["scene_objects"] = {int(n): objects for n, objects in raw["scene_objects"].items()}
        return cls(**raw)


@dataclass(frozen=True)
class Thing:
    """An object: its type, the index of the receptacle that holds it, and invented coordinates in centimetres."""

    type: str
    receptacle: int
    x: int
    z: int

    @property
    def id(self) -> str:
        return f"{self.type}|{_metres(self.x)}|+00.90|{_metres(self.z)}"


@dataclass(frozen=True)
class GameSpec:
    """One generated game; ``toggle`` is the lamp's type in games that need one. ``plan`` wins it."""

    task_type: str
    scene: int
    object: str
    parent: str
    toggle: str
    goal: str
    start: tuple[int, int, int, int]
    things: tuple[Thing, ...]
    plan: tuple[str, ...] = ()

    def to_json(self) -> str:
        raw = asdict(self) | {"things": [[t.type, t.receptacle, t.x, t.z] for t in self.things]}
        return json.dumps(raw, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> GameSpec:
        raw = json.loads(text)
        raw["things"] = tuple(Thing(*t) for t in raw["things"])
        return cls(**raw | {"start": tuple(raw["start"]), "plan": tuple(raw["plan"])})


@dataclass(frozen=True)
class GameTexts:
    """What a game file carries, official or generated. ``plan`` may be empty where the file has none."""

    domain: str
    grammar: str
    problem: str
    task_type: str
    goal: str
    params: dict[str, Any] = field(default_factory=dict)
    plan: tuple[str, ...] = ()


def game_texts(spec: GameSpec, world: World) -> GameTexts:
    """The texts of a generated game."""
    return GameTexts(
        domain=world.domain,
        grammar=world.grammar.replace("UNKNOWN GOAL", spec.goal),
        problem=problem_text(spec, world),
        task_type=spec.task_type,
        goal=spec.goal,
        params={
            "object_target": spec.object,
            "parent_target": spec.parent,
            "toggle_target": spec.toggle,
            "mrecep_target": "",
            "object_sliced": False,
        },
        plan=spec.plan,
    )


def problem_text(spec: GameSpec, world: World) -> str:
    """The game as a PDDL problem of the ``alfred`` domain."""
    receptacles = world.scenes[spec.scene]
    receptacle_types = sorted({r.type for r in receptacles} | set(_NAMED_RECEPTACLE_TYPES) | {spec.parent} - {""})
    object_types = sorted({t.type for t in spec.things} | set(_NAMED_OBJECT_TYPES))
    places = sorted({_place(r.pose) for r in receptacles} | {_place(spec.start)})
    objects = ["agent1 - agent"]
    objects += [f"{t.id} - object" for t in spec.things]
    objects += [f"{t}Type - otype" for t in object_types]
    objects += [f"{t}Type - rtype" for t in receptacle_types]
    objects += [f"{r.id} - receptacle" for r in receptacles]
    objects += [f"{place} - location" for place in places]
    facts = [f"(atLocation agent1 {_place(spec.start)})"]
    for kind in receptacle_types:
        facts += [f"(canContain {kind}Type {o}Type)" for o in world.can_contain.get(kind, []) if o in object_types]
    for r in receptacles:
        facts += [f"(receptacleType {r.id} {r.type}Type)", f"(receptacleAtLocation {r.id} {_place(r.pose)})"]
        facts += [f"(openable {r.id})"] if r.type in world.openable else []
    for t in spec.things:
        facts += _thing_facts(t, receptacles[t.receptacle], world)
    goal = world.goals[spec.task_type]["pddl"].replace("#", "-").strip().removesuffix(")").strip()
    goal = goal.format(obj=spec.object, recep=spec.parent, toggle=spec.toggle)
    return "\n".join(
        (
            "(define (problem plan)",
            "(:domain alfred)",
            f"(:objects\n{mangle_lines(objects)}\n)",
            f"(:init\n(= (total-cost) 0)\n{mangle_lines(facts)}\n)",
            goal,
            "(:metric minimize (total-cost))\n)\n",
        )
    )


def mangle_lines(lines: list[str]) -> str:
    """Lines with AI2-THOR ids as PDDL text; the dash between an object and its type stays."""
    return "\n".join(" - ".join(mangle(part) for part in line.split(" - ")) for line in lines)


def _thing_facts(thing: Thing, receptacle: Receptacle, world: World) -> list[str]:
    facts = [
        f"(objectType {thing.id} {thing.type}Type)",
        f"(inReceptacle {thing.id} {receptacle.id})",
        f"(objectAtLocation {thing.id} {_place(receptacle.pose)})",
    ]
    facts += [f"({ability} {thing.id})" for ability, types in world.abilities.items() if thing.type in types]
    if thing.type not in world.abilities["toggleable"]:
        facts.append(f"(pickupable {thing.id})")
    if thing.type in world.movable:
        facts.append(f"(isReceptacleObject {thing.id})")
    return facts


def _place(pose: tuple[int, int, int, int]) -> str:
    return "loc|" + "|".join(map(str, pose))


def _metres(centimetres: int) -> str:
    return f"{'-' if centimetres < 0 else '+'}{abs(centimetres) / 100:05.2f}"


def load_world(path: Path) -> World:
    return World.from_json(path.read_text())
