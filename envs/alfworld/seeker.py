"""Demonstrations that know only what they have seen: search the room, then do the task.

Unlike the oracle of ``planner`` a seeker looks into one receptacle after the other until it finds what it needs, and
remembers what it passed. It knows the rules of the house (which kinds of furniture can hold a thing, where things are
heated) and the list of furniture that the first observation shows, never what a receptacle holds before it is open and
in front of it. Kinds of furniture are searched in an order drawn from the seed, those of a kind by number, or all of
them in the order of the list.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

from envs.alfworld.engine import Game
from envs.alfworld.planner import TOOLS

ORDERS = ("shuffled", "listed")


def seek(
    game: Game, task_type: str, params: dict[str, Any], seed: int, max_steps: int, order: str = "shuffled"
) -> tuple[str, ...]:
    """Commands of a search that wins within ``max_steps``; empty if this one does not.

    ``order`` of looking: ``"shuffled"`` by kind, from the seed, or ``"listed"``, as the first observation names them.
    """
    if order not in ORDERS:
        raise ValueError(f"Unknown order {order!r}; expected one of {', '.join(ORDERS)}.")
    seeker = _Seeker(game, random.Random(seed), max_steps, order)
    with contextlib.suppress(_GaveUp):
        seeker.solve(task_type, params)
    return tuple(seeker.commands) if seeker.play.won else ()


class _GaveUp(Exception):
    """Out of steps, or out of places to look."""


class _Seeker:
    def __init__(self, game: Game, rng: random.Random, max_steps: int, order: str) -> None:
        self._game = game
        self.play = game.start()
        self.commands: list[str] = []
        self._max_steps = max_steps
        self._names = [entity.name for entity in game.entities]
        self._ids = game.ids
        self._furniture = self._pairs("receptacletype")  # name -> kind
        kinds = sorted(set(self._furniture.values()))
        direction = -1  # the first observation counts down
        if order == "shuffled":
            rng.shuffle(kinds)
            direction = 1
        self._order = sorted(self._furniture, key=lambda r: (kinds.index(self._furniture[r]), direction * _number(r)))
        self._openable = {self._names[fact[0]] for fact in game.facts["openable"].facts}
        self._seen: dict[str, list[str]] = {}  # receptacle -> what was in it when last looked into
        self._here = ""

    def _pairs(self, predicate: str) -> dict[str, str]:
        """First argument's name to the second's id."""
        return {self._names[a]: self._ids[b] for a, b in self.play.facts[predicate].facts}

    def solve(self, task_type: str, params: dict[str, Any]) -> None:
        wanted = params["object_target"].lower()
        if task_type == "look_at_obj_in_light":
            self._take(self._find(wanted, self._plausible(wanted), avoid=""))
            lamp = params["toggle_target"].lower()
            thing, where = self._find(lamp, [r for r in self._order if r not in self._openable], avoid="")
            self._go(where)
            self._do("toggleobject", o=thing)
            return
        target = next(r for r in self._order if self._furniture[r] == f"{params['parent_target'].lower()}type")
        verb, _, tool_kind = TOOLS.get(task_type, ("", "", ""))
        for _ in range(2 if task_type == "pick_two_obj_and_place" else 1):
            thing, where = self._find(wanted, self._plausible(wanted), avoid="" if verb else target)
            self._take((thing, where))
            if verb:
                tool = next(r for r in self._order if self._furniture[r] == f"{tool_kind}type")
                self._go(tool)
                self._do(verb, o=thing, r=tool)
            self._look_into(target)
            self._do("putobject", o=thing, r=target)
            self._seen[target].append(thing)

    def _plausible(self, kind: str) -> list[str]:
        """Furniture that can hold such a thing, in the order of the search."""
        facts = self.play.facts["cancontain"].facts
        holders = {self._ids[r] for r, o in facts if self._ids[o] == f"{kind}type"}
        return [r for r in self._order if self._furniture[r] in holders]

    def _find(self, kind: str, places: list[str], avoid: str) -> tuple[str, str]:
        """A thing of the kind, not in ``avoid``, and its place: remembered, or looked for."""
        for where in [*(p for p in self._seen if p != avoid), *(p for p in places if p not in self._seen)]:
            if where not in self._seen:
                self._look_into(where)
            for thing in self._seen[where]:
                if where != avoid and thing.rpartition(" ")[0] == kind:
                    return thing, where
        raise _GaveUp

    def _take(self, found: tuple[str, str]) -> None:
        thing, where = found
        self._look_into(where)
        self._do("pickupobject", o=thing, r=where)
        self._seen[where].remove(thing)

    def _go(self, where: str) -> None:
        if self._here != where:
            # Furniture may share a place with what the agent stands at: there is nowhere to go then.
            if not self._try("gotolocation", r=where) and where not in self._seen:
                self._do("examinereceptacle", r=where)
            self._here = where

    def _look_into(self, where: str) -> None:
        """Stand there with the contents in view; what the answers showed is remembered."""
        self._go(where)
        self._try("openobject", r=where)
        holds = self.play.facts["inreceptacle"].facts
        self._seen[where] = sorted(self._names[o] for o, r in holds if self._names[r] == where)

    def _try(self, action: str, **arguments: str) -> bool:
        """Do it if it is admissible."""
        possible = self._game.say(action, **arguments) in self.play.admissible()
        if possible:
            self._do(action, **arguments)
        return possible

    def _do(self, action: str, **arguments: str) -> None:
        if len(self.commands) >= self._max_steps or self.play.won:
            raise _GaveUp
        self.commands.append(self._game.say(action, **arguments))
        self.play.step(self.commands[-1])


def _number(name: str) -> int:
    return int(name.rpartition(" ")[2] or 0)
