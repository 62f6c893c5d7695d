"""Which images go when they take too much room: those that were used longest ago. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """An image, as far as the choice is concerned."""

    tag: str
    own_bytes: int
    """What its removal frees."""
    used_at_s: float
    """Unix seconds of the last start from it; of its making, if there was none."""
    pinned: bool = False
    """Somebody stands on it now."""


def to_evict(images: Collection[Kept], limit_bytes: int) -> list[Kept]:
    """The images whose removal brings the sum of all down to ``limit_bytes``, longest unused first; all that are not
    pinned, where even that is not enough."""
    excess = sum(image.own_bytes for image in images) - limit_bytes
    gone: list[Kept] = []
    for image in sorted(images, key=lambda one: (one.used_at_s, one.tag)):
        if excess <= 0:
            break
        if not image.pinned:
            gone.append(image)
            excess -= image.own_bytes
    return gone
