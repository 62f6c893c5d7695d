"""Assembling groups: G trajectories of one task, played by single-candidate episodes that end in any order.

Invariants: a group completes with exactly G counted members, none of them void; a void member's place is opened again
with the same seeds; when extra members were started, the first G to finish win and the others are surplus; places are
filled in the order in which groups were opened, which is what admission's bound rests on.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rock.domain.outcome import Completed, Truncated
from roll_core.types import Group, Trajectory


def reward_of(trajectory: Trajectory) -> float:
    """The reward of a counted trajectory. A void one has none: asking is an error, not 0."""
    if isinstance(trajectory.outcome, Completed | Truncated):
        return trajectory.outcome.reward
    raise ValueError(f"episode {trajectory.id} is void and has no reward")


def has_signal(group: Group) -> bool:
    """Whether the members' rewards differ; without a difference every group-relative advantage is 0."""
    rewards = [reward_of(m) for m in group.members]
    return max(rewards) > min(rewards)


@dataclass(frozen=True, slots=True)
class Running:
    episode_id: str
    init_version: int


Place = Running | Trajectory | None
"""A member's place: being played, finished, or to be filled."""


@dataclass(slots=True)
class OpenGroup:
    index: int
    id: str
    task: str
    seed: int
    size: int
    places: list[Place]
    voids: int = 0
    taken: int = 0
    """Places that are not to be filled: being played, or finished."""

    def finished(self) -> list[Trajectory]:
        return [p for p in self.places if isinstance(p, Trajectory)]

    def running(self) -> list[Running]:
        return [p for p in self.places if isinstance(p, Running)]

    def oldest_version(self) -> int | None:
        started = [p.init_version for p in self.places if p is not None]
        return min(started) if started else None


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A complete group with the place in the order of opening, which the buffer keeps."""

    index: int
    group: Group

    @property
    def oldest_version(self) -> int:
        return min(m.init_version for m in self.group.members)


@dataclass(slots=True)
class GroupBook:
    """All groups that are not complete yet, in the order of their opening."""

    group_size: int
    extra_members: int = 0
    groups: dict[int, OpenGroup] = field(default_factory=dict)
    """By index; groups are opened with rising indices, so the first is the oldest."""
    held: int = 0
    """Samples being played or finished in groups that are not complete."""
    _of_episode: dict[str, tuple[int, int]] = field(default_factory=dict)
    _to_fill: list[int] = field(default_factory=list)
    """A heap of the indices of groups that may have a place to fill; some have none any more."""

    def open(self, index: int, group_id: str, task: str, seed: int, members: Sequence[Place] = ()) -> OpenGroup:
        """``members``: those that a checkpoint kept."""
        places = list(members) or [None] * (self.group_size + self.extra_members)
        taken = sum(place is not None for place in places)
        group = OpenGroup(index, group_id, task, seed, self.group_size, places, taken=taken)
        self.groups[index] = group
        self.held += taken
        heapq.heappush(self._to_fill, index)
        return group

    def first_open_place(self) -> tuple[OpenGroup, int] | None:
        while self._to_fill:
            group = self.groups.get(self._to_fill[0])
            if group is not None and group.taken < len(group.places):
                return group, group.places.index(None)
            heapq.heappop(self._to_fill)
        return None

    def start(self, group: OpenGroup, place: int, episode_id: str, init_version: int) -> None:
        if group.places[place] is not None:
            raise ValueError(f"place {place} of group {group.id} is taken")
        group.places[place] = Running(episode_id, init_version)
        group.taken += 1
        self.held += 1
        self._of_episode[episode_id] = (group.index, place)

    def finish(self, trajectory: Trajectory) -> OpenGroup:
        """Put a counted trajectory in its place; the caller asks :meth:`complete` next."""
        group, place = self._release(trajectory.id)
        group.places[place] = trajectory
        return group

    def void(self, episode_id: str) -> OpenGroup:
        group, place = self._release(episode_id)
        group.places[place] = None
        group.voids += 1
        group.taken -= 1
        self.held -= 1
        heapq.heappush(self._to_fill, group.index)
        return group

    def complete(self, group: OpenGroup) -> tuple[ReadyGroup, tuple[Running, ...]] | None:
        """The finished group and its surplus members still being played, or None while members are missing."""
        members = group.finished()
        if len(members) < group.size:
            return None
        surplus = tuple(group.running())
        self.remove(group)
        return ReadyGroup(group.index, Group(group.id, group.task, tuple(members))), surplus

    def remove(self, group: OpenGroup) -> None:
        del self.groups[group.index]
        self.held -= group.taken
        for running in group.running():
            del self._of_episode[running.episode_id]

    def older_than(self, version: int) -> list[OpenGroup]:
        """Groups with a member initiated before ``version``."""
        return [g for g in self if (oldest := g.oldest_version()) is not None and oldest < version]

    @property
    def oldest(self) -> int | None:
        """Index of the oldest group."""
        return next(iter(self.groups), None)

    def before(self, index: int) -> int:
        """How many groups were opened before the one with this index."""
        newest = self.newest
        if index >= newest:
            return len(self.groups) - (index == newest)
        return sum(i < index for i in self.groups)

    @property
    def newest(self) -> int:
        return next(reversed(self.groups), -1)

    def __iter__(self) -> Iterator[OpenGroup]:
        return iter(tuple(self.groups.values()))

    def _release(self, episode_id: str) -> tuple[OpenGroup, int]:
        index, place = self._of_episode.pop(episode_id)
        return self.groups[index], place
