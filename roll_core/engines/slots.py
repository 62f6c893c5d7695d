"""Who holds which row of the KV cache. Pure bookkeeping; the rows themselves are the decoder's.

Invariants: a slot is free, idle (a session's ids are cached in it) or busy (one request writes it); a session has at
most one slot; a busy slot is never taken away; the cached ids of a slot are exactly those whose keys and values are
valid under the present weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    same = 0
    while same < n:  # by halves: slices are compared without the interpreter
        half = (n - same + 1) // 2
        if a[same : same + half] == b[same : same + half]:
            same += half
        else:
            n = same + half - 1
    return same


class SlotTable:
    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"slots={count} must be at least 1")
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._busy: dict[int, str] = {}
        self._busy_sessions: set[str] = set()
        self._ids: list[list[int]] = [[] for _ in range(count)]

    @property
    def busy(self) -> int:
        return len(self._busy)

    def acquire(self, session: str, prompt_ids: list[int]) -> tuple[int, int] | None:
        """A slot for a request and how many leading ids of its prompt are valid in it; None when all are busy.

        Its session's own slot, else a free one, else the least recently used idle one (whose session will recompute).
        At least the last id of the prompt is left to compute, because sampling needs its logits. A request whose
        session is already busy gets a slot of its own and leaves nothing behind.
        """
        if session in self._busy_sessions:
            session = ""
        if session in self._idle:
            slot = self._idle.pop(session)
        elif self._free:
            slot = self._free.pop()
        elif self._idle:
            _, slot = self._idle.popitem(last=False)
            self._ids[slot] = []
        else:
            return None
        self._busy[slot] = session
        if session:
            self._busy_sessions.add(session)
        return slot, min(common_prefix(self._ids[slot], prompt_ids), len(prompt_ids) - 1)

    def finish(self, slot: int, valid_ids: list[int]) -> None:
        """The request in ``slot`` ended and left ``valid_ids`` in the cache."""
        session = self._busy.pop(slot)
        self._busy_sessions.discard(session)
        if session:
            self._ids[slot] = valid_ids
            self._idle[session] = slot
        else:
            self._ids[slot] = []
            self._free.append(slot)

    def release(self, session: str) -> None:
        """Forget a session. If a request of it still runs, its slot is freed when that ends."""
        if session in self._idle:
            slot = self._idle.pop(session)
            self._ids[slot] = []
            self._free.append(slot)
        elif session in self._busy_sessions:
            self._busy_sessions.discard(session)
            self._busy = {slot: "" if name == session else name for slot, name in self._busy.items()}

    def invalidate(self) -> None:
        """The weights changed: nothing cached in an idle slot is valid any more."""
        for slot in self._idle.values():
            self._ids[slot] = []
