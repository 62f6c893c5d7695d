"""Plays the same commands on two engines and compares everything an agent could see.

The commands mix the game's plan with random admissible ones and with ones that are not admissible. Half of the walks
only look around between the steps of the plan, and so win; the other half do anything.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from envs.alfworld.shipped import Episode

_PLAN, _NOT_MOVING, _ANY = 0.4, 0.75, 0.95  # cumulative; the rest is nonsense
_HARMLESS = ("examine ", "look", "inventory", "help")
_NOT_GOING = (*_HARMLESS, "open ", "close ", "take ", "move ", "use ", "heat ", "clean ", "cool ", "slice ")
_NONSENSE = ("eat the fridge", "", "  look ", "go to nowhere 1", "take apple 1", "LOOK", "examine {o}", "move  1 to 2")


@dataclass
class Comparison:
    """What comparing one game found; ``difference`` is empty if the traces are identical. CPU seconds of stepping."""

    steps: int = 0
    cpu_s: float = 0.0
    oracle_cpu_s: float = 0.0
    won: bool = False
    difference: str = ""


def compare(episode: Episode, oracle: Episode, plan: tuple[str, ...], steps: int, seed: str) -> Comparison:
    """Play up to ``steps`` steps on both. Goes on after a win, as TextWorld lets one do."""
    rng = random.Random(seed)
    left = list(plan)
    careful = rng.random() < 0.5
    result = Comparison()
    seen = (episode.intro(), episode.admissible(), episode.won)
    expected = (oracle.intro(), oracle.admissible(), oracle.won)
    while seen == expected and result.steps < steps:
        command = _next_command(rng, left, seen[1], careful and bool(left))
        start = time.process_time()
        seen = (episode.step(command), episode.admissible(), episode.won)
        middle = time.process_time()
        expected = (oracle.step(command), oracle.admissible(), oracle.won)
        result.oracle_cpu_s += time.process_time() - middle
        result.cpu_s += middle - start
        result.steps += 1
        result.won = result.won or episode.won
    if seen != expected:
        result.difference = f"after step {result.steps}: {seen!r} instead of {expected!r}"
    return result


def _next_command(rng: random.Random, plan: list[str], admissible: list[str], careful: bool) -> str:
    draw = rng.random()
    if draw < _PLAN and plan and plan[0] in admissible:
        return plan.pop(0)
    if draw < _NOT_MOVING:
        return rng.choice([c for c in admissible if c.startswith(_HARMLESS if careful else _NOT_GOING)])
    return rng.choice(admissible if draw < _ANY and not careful else _NONSENSE)
