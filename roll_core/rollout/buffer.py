"""Where rollout and learner meet: complete groups waiting to be trained on.

Invariants: bounded (admission keeps the sum of buffer and flight under (1+α)·N, the bound here only proves it); a
batch holds only samples initiated by version ≥ n − α; groups leave in the order in which they were opened.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from roll_core.rollout.groups import ReadyGroup

Order = Literal["opened", "finished"]
"""``opened``: a batch is the oldest groups, and waits for them. Nothing is ever stale then, and slow tasks, which tend
to be the hard ones, are not left out. ``finished``: the first groups to finish make the batch (redundant groups pay
off only so); what is passed by until it can no longer be fresh is cancelled and booked as stale."""

_BY_INDEX = attrgetter("index")


@dataclass(slots=True)
class Buffer:
    max_samples: int
    order: Order = "opened"
    groups: list[ReadyGroup] = field(default_factory=list)
    """In the order in which they were opened."""
    samples: int = 0

    def put(self, ready: ReadyGroup) -> None:
        size = len(ready.group.members)
        if self.samples + size > self.max_samples:
            raise OverflowError(f"buffer is bounded to {self.max_samples} samples; admission let too many in")
        insort(self.groups, ready, key=_BY_INDEX)
        self.samples += size

    def before(self, index: int) -> int:
        """How many groups were opened before the one with this index."""
        return bisect_left(self.groups, index, key=_BY_INDEX)

    def has(self, count: int, *, oldest_open: int | None) -> bool:
        """Whether ``count`` groups can be taken. ``oldest_open``: index of the oldest group still being played."""
        if len(self.groups) < count:
            return False
        return self.order == "finished" or oldest_open is None or self.groups[count - 1].index < oldest_open

    def take(self, count: int, *, min_version: int) -> tuple[ReadyGroup, ...]:
        taken, self.groups = self.groups[:count], self.groups[count:]
        too_old = [g.group.id for g in taken if g.oldest_version < min_version]
        if too_old:
            raise AssertionError(f"stale groups {too_old} reached a batch; evict must run first")
        self._recount()
        return tuple(taken)

    def evict(self, min_version: int) -> tuple[ReadyGroup, ...]:
        """Remove and return the groups with a member initiated before ``min_version``."""
        stale = tuple(g for g in self.groups if g.oldest_version < min_version)
        self.groups = [g for g in self.groups if g.oldest_version >= min_version]
        self._recount()
        return stale

    def _recount(self) -> None:
        self.samples = sum(len(g.group.members) for g in self.groups)
