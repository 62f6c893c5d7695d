"""Whose waiting claim is served next: fair between runs, first come first served within a run. Pure.

Start-time fair queueing (Goyal 1996) with equal weights: every key (a run) has a *tag*, the service it has had. The
waiting item of the least tag is next, and serving it raises its key's tag by one. A key that begins to wait starts at
the tag of whoever was served last, so it has neither credit for the time it was away nor a debt from long ago.

Items wait in *lanes* (pools: a sandbox that became ready serves its own lane only), and the tags are common to all
lanes, so that a run that waits for five images has no more of a full node than one that waits for one.

Invariants: while two keys wait in one lane, the one that has had more service is not served there, so with one lane
neither is ever more than one ahead of the other, however many items it has; a key's items leave a lane in the order
they came; in one lane the n-th of a key's items is served after at most n others of each other key.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    def __init__(self) -> None:
        self._arrivals = count()
        self._lanes: dict[str, dict[str, deque[tuple[int, T]]]] = {}
        """By lane, then by key. Nothing empty is kept."""
        self._waiting: dict[str, int] = {}
        """Items by key, in all lanes."""
        self._tags: dict[str, int] = {}
        self._served_tag = 0
        """The tag at which the last item was served."""

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def waiting(self, lane: str) -> int:
        return sum(len(line) for line in self._lanes.get(lane, {}).values())

    def push(self, lane: str, key: str, item: T) -> None:
        if not self._waiting.get(key):
            self._tags[key] = max(self._tags.get(key, 0), self._served_tag)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        self._lanes.setdefault(lane, {}).setdefault(key, deque()).append((next(self._arrivals), item))

    def pop(self, lane: str) -> T | None:
        """Serve the next item of ``lane``; None if none waits there."""
        lines = self._lanes.get(lane)
        if not lines:
            return None
        key = min(lines, key=lambda k: (self._tags[k], lines[k][0][0]))
        _, item = lines[key].popleft()
        self._served_tag = max(self._served_tag, self._tags[key])
        self._tags[key] += 1
        self._left(lane, key)
        return item

    def remove(self, lane: str, key: str, item: T) -> bool:
        """It no longer waits, and was not served. False if it is not there."""
        line = self._lanes.get(lane, {}).get(key, deque())
        for place, (_, other) in enumerate(line):
            if other is item:
                del line[place]
                self._left(lane, key)
                return True
        return False

    def drain(self, lane: str) -> list[T]:
        """Take everything out of a lane, served to nobody, in the order it came."""
        lines = self._lanes.get(lane, {})
        taken = sorted((entry for line in lines.values() for entry in line), key=lambda entry: entry[0])
        for key, line in list(lines.items()):
            while line:
                line.popleft()
                self._left(lane, key)
        return [item for _, item in taken]

    def _left(self, lane: str, key: str) -> None:
        self._waiting[key] -= 1
        if not self._lanes[lane][key]:
            del self._lanes[lane][key]
            if not self._lanes[lane]:
                del self._lanes[lane]
        if not self._waiting[key]:
            del self._waiting[key]
            # Whoever is away with a tag that has been passed would come back at the served tag anyway.
            for idle in [k for k, tag in self._tags.items() if k not in self._waiting and tag <= self._served_tag]:
                del self._tags[idle]

    def order(self) -> Iterator[str]:
        """The lanes of all waiting items, in the order in which the items would be served if every lane could."""
        lines = {
            key: heapq.merge(*([(n, lane) for n, _ in line] for lane, line in self._of(key))) for key in self._waiting
        }
        heads = []
        for key, line in lines.items():
            arrival, lane = next(line)
            heads.append((self._tags[key], arrival, key, lane))
        heapq.heapify(heads)
        while heads:
            tag, _, key, lane = heads[0]
            yield lane
            following = next(lines[key], None)
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (tag + 1, following[0], key, following[1]))

    def _of(self, key: str) -> list[tuple[str, deque[tuple[int, T]]]]:
        return [(lane, lines[key]) for lane, lines in self._lanes.items() if key in lines]
