"""Countdown instances by level of difficulty, solvable by construction, the same for the same seed everywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from envs.countdown.instance import Instance
from envs.countdown.solver import attempt


@dataclass(frozen=True, slots=True)
class Level:
    count: int
    """Numbers of an instance."""
    numbers: tuple[int, ...]
    """What they are drawn from, with replacement."""
    targets: range
    rule: str = "each"


_SMALL, _LARGE = (*range(1, 11), *range(1, 11)), (25, 50, 75, 100)

LEVELS = {
    # For models of a million parameters.
    "tiny": Level(3, tuple(range(1, 21)), range(1, 100)),
    "easy": Level(3, tuple(range(1, 100)), range(10, 101)),
    # As usual in the literature: four numbers up to 99.
    "standard": Level(4, tuple(range(1, 100)), range(10, 101)),
    # The television game: six numbers, of which not all need be used.
    "show": Level(6, _SMALL + _LARGE, range(101, 1000), "any"),
}


def generate(level: Level, count: int, seed: str, known: set[tuple[str, tuple[int, ...], int]]) -> Iterator[Instance]:
    """``count`` instances, none of them (in whatever order of its numbers) in ``known``, which grows.

    The target is what a random combination of the numbers gives: that is what makes it solvable, and makes targets
    with many solutions frequent. Raises ValueError when the level has not that many.
    """
    rng = random.Random(seed)
    found = misses = 0
    while found < count:
        numbers = tuple(rng.choice(level.numbers) for _ in range(level.count))
        used = numbers if level.rule == "each" else numbers[: rng.randint(3, level.count)]
        target = attempt(used, rng)[-1].result.value
        instance = Instance(tuple(rng.sample(numbers, len(numbers))), target, level.rule)
        if target not in level.targets or target in numbers or instance.key in known:
            misses += 1
            if misses > 1000 * (found + 10):
                raise ValueError(f"found {found} of {count} new instances of {level}: it has not that many")
            continue
        known.add(instance.key)
        found += 1
        yield instance
