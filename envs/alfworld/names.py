"""The names players see: ``apple_bar__minus_00_dot_47…`` becomes ``apple 1``, numbered as ALFWorld numbers them.

Numbers are given out from the highest to 1 over the alphabetical order of the ids; an id without coordinates keeps its
own text (with a trailing blank, as shipped).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_MANGLED = (("|", "_bar_"), ("-", "_minus_"), ("+", "_plus_"), (".", "_dot_"), (",", "_comma_"))


def mangle(object_id: str) -> str:
    """An AI2-THOR object id as a PDDL name: ``Apple|-00.47|…`` to ``Apple_bar__minus_00_dot_47…``."""
    for character, word in _MANGLED:
        object_id = object_id.replace(character, word)
    return object_id


def demangle(mangled: str) -> str:
    """The inverse of :func:`mangle`."""
    for character, word in _MANGLED:
        mangled = mangled.replace(word, character)
    return mangled


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """The displayed name of every PDDL id."""
    ordered = sorted(ids)
    left: Counter[str] = Counter(_kind(i) for i in ordered if "_bar_" in i)
    names = {}
    for object_id in ordered:
        text = demangle(object_id)
        kind, bar, _ = text.partition("|")
        if bar:
            kind += "basin" if "basin" in object_id else ""
            names[object_id] = f"{kind} {left[kind]}"
            left[kind] -= 1
        else:
            names[object_id] = f"{text} "
    return names


def _kind(object_id: str) -> str:
    return object_id.split("_bar_", 1)[0] + ("basin" if "basin" in object_id else "")
