"""Sampled tokens of a simulation: only their number and versions matter, so they are kept by run length.

A :class:`Runs` reads like the tuple that :class:`~roll_core.types.Generation` asks for, at a cost that does not grow
with its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, cast

from roll_core.types import FinishReason, Generation

SAMPLED_ID = 1
"""The id of every simulated token; prompts use others."""


class Runs(Sequence[Any]):
    __slots__ = ("_length", "_runs")

    def __init__(self, *runs: tuple[Any, int]) -> None:
        """``runs``: pairs of a value and how often it comes."""
        self._runs = runs
        self._length = sum(n for _, n in runs)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if len(self._runs) == 1:
            return iter(repeat(*self._runs[0]))
        return chain.from_iterable(repeat(value, n) for value, n in self._runs)

    def __getitem__(self, index: int | slice) -> Any:
        return tuple(self)[index]

    def __add__(self, other: Any) -> Runs:
        return Runs(*self._runs, *(other._runs if isinstance(other, Runs) else [(value, 1) for value in other]))

    @property
    def runs(self) -> tuple[tuple[Any, int], ...]:
        return self._runs


def generation(versions: Sequence[tuple[int, int]], reason: FinishReason) -> Generation:
    """``versions``: how many tokens each version sampled, in order."""
    count = sum(n for _, n in versions)
    ids, logprobs = Runs((SAMPLED_ID, count)), Runs((-1.0, count))
    as_tuple = cast(Any, (ids, logprobs, Runs(*versions)))
    return Generation(as_tuple[0], as_tuple[1], as_tuple[2], reason)
