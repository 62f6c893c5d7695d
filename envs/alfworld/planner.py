"""Oracle plans: the shortest way through the skeleton that every game of a task type shares.

The planner sees everything, also what lies in closed receptacles: its plans are upper bounds for an agent that has to
look, and demonstrations that know more than they show. It reads the same facts as the evaluator, tries every object and
receptacle that fits the goal, and returns the shortest sequence of commands, which the caller can replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from envs.alfworld.engine import Game

TOOLS = {  # task type -> (action, ability of the object, type of the tool)
    "pick_clean_then_place_in_recep": ("cleanobject", "cleanable", "sinkbasin"),
    "pick_heat_then_place_in_recep": ("heatobject", "heatable", "microwave"),
    "pick_cool_then_place_in_recep": ("coolobject", "coolable", "fridge"),
}


class Unsolvable(ValueError):
    """No plan of the task type's skeleton fits the game."""


def plan(game: Game, task_type: str, params: dict[str, Any]) -> tuple[str, ...]:
    """The shortest oracle plan (first in alphabetical order among equals), checked by replaying it."""
    view = _View(game)
    candidates = sorted(_candidates(view, task_type, params), key=lambda commands: (len(commands), commands))
    for commands in candidates[:8]:
        if wins(game, commands):
            return commands
    raise Unsolvable(f"No plan of the kind {task_type} wins with {params!r}; {len(candidates)} were tried.")


def wins(game: Game, commands: tuple[str, ...]) -> bool:
    """Whether the commands win the game, with its last one and not before."""
    play = game.start()
    for command in commands:
        if play.won:
            return False
        play.step(command)
    return play.won


class _View:
    """The initial facts, looked up by name."""

    def __init__(self, game: Game) -> None:
        self.game = game
        name = {i: entity.name for i, entity in enumerate(game.entities)}
        ids = dict(enumerate(game.ids))
        pairs = {p: [(f[0], f[-1]) for f in game.facts[p].facts] for p in game.facts}
        self.place = {name[r]: ids[place] for r, place in pairs["receptacleatlocation"]}
        self.holder = {name[o]: name[r] for o, r in pairs["inreceptacle"]}
        self.closed = {name[r] for r, _ in pairs["openable"]} - {name[r] for r, _ in pairs["opened"]}
        self.here = ids[pairs["atlocation"][0][1]]
        self._object_type = [(name[o], ids[t]) for o, t in pairs["objecttype"]]
        self._receptacle_type = [(name[r], ids[t]) for r, t in pairs["receptacletype"]]
        self.able = {p: {name[o] for o, _ in pairs[p]} for p in ("cleanable", "heatable", "coolable", "toggleable")}

    def objects(self, kind: str) -> list[str]:
        return sorted(o for o, t in self._object_type if t == f"{kind.lower()}type" and o in self.holder)

    def receptacles(self, kind: str) -> list[str]:
        return sorted(r for r, t in self._receptacle_type if t == f"{kind.lower()}type")


@dataclass
class _Walk:
    """Commands so far, and what they changed."""

    view: _View
    here: str
    opened: set[str] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)

    def do(self, action: str, **arguments: str) -> None:
        self.commands.append(self.view.game.say(action, **arguments))

    def go(self, receptacle: str) -> None:
        if self.view.place[receptacle] != self.here:
            self.do("gotolocation", r=receptacle)
            self.here = self.view.place[receptacle]

    def reach_into(self, receptacle: str) -> None:
        self.go(receptacle)
        if receptacle in self.view.closed and receptacle not in self.opened:
            self.do("openobject", r=receptacle)
            self.opened.add(receptacle)

    def take(self, thing: str) -> None:
        holder = self.view.holder[thing]
        self.reach_into(holder)
        self.do("pickupobject", o=thing, r=holder)

    def put(self, thing: str, receptacle: str) -> None:
        self.reach_into(receptacle)
        self.do("putobject", o=thing, r=receptacle)


def _candidates(view: _View, task_type: str, params: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    things = view.objects(params["object_target"])
    if task_type == "look_at_obj_in_light":
        lamps = [lamp for lamp in view.objects(params["toggle_target"]) if lamp in view.able["toggleable"]]
        for thing in things:
            for lamp in lamps:
                walk = _Walk(view, view.here)
                walk.take(thing)
                walk.go(view.holder[lamp])
                walk.do("toggleobject", o=lamp)
                yield tuple(walk.commands)
        return
    count = 2 if task_type == "pick_two_obj_and_place" else 1
    verb, ability, tool_type = TOOLS.get(task_type, ("", "", ""))
    for target in view.receptacles(params["parent_target"]):
        missing = count - sum(view.holder[t] == target for t in things) if not verb else count
        elsewhere = [t for t in things if (view.holder[t] != target or verb) and (not verb or t in view.able[ability])]
        for chosen in permutations(elsewhere, missing):
            for tool in view.receptacles(tool_type) if verb else ("",):
                walk = _Walk(view, view.here)
                for thing in chosen:
                    walk.take(thing)
                    if verb:
                        walk.go(tool)
                        walk.do(verb, o=thing, r=tool)
                    walk.put(thing, target)
                yield tuple(walk.commands)
