"""Which sandboxes are too slow to be healthy, judged against others of the same kind. Pure.

A sandbox that answers probes and takes ten times as long for a step as its peers holds its whole group up; it fails
without dying. It is measured by what its guest measured: the time a step takes inside, without network and queues.

Invariants: nobody is slow without peers, or a past, to compare with; a fleet that is slow as a whole has no outliers;
never more than a bounded share is called slow at a time.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlowPolicy:
    ratio: float = 10.0
    """So many times its image's median."""
    floor_s: float = 0.1
    """Below this nobody is slow: on a machine at load 25, sandboxes that nothing ailed had medians of 28 to 65 ms where
    their peers had 1."""
    min_steps: int = 10
    """Steps that a median needs, the sandbox's own and its peers'."""
    min_peers: int = 2
    """With fewer, the image's past is what it is compared with."""
    max_share: float = 0.1
    """Of the living sandboxes that may be replaced for slowness within ``window_s``; one always may."""
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The recent steps of one sandbox."""

    kind: str
    """What it is compared with: the digest of its spec."""
    steps: int
    p50_s: float


class Latencies:
    """Latencies as counts: seconds → how many. Whoever measured has rounded them, so there are few different ones."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def add(self, counts: Mapping[float, int]) -> None:
        self.counts.update(counts)

    def __len__(self) -> int:
        return self.counts.total()

    def p50_s(self) -> float | None:
        half, seen = len(self) / 2, 0
        for seconds in sorted(self.counts):
            seen += self.counts[seconds]
            if seen >= half and seen:
                return seconds
        return None

    def fade(self) -> None:
        """Forget half, so that the past weighs less than the present."""
        self.counts = Counter({seconds: n // 2 for seconds, n in self.counts.items() if n >= 2})


class Window:
    """The latest steps of one sandbox: at least ``steps`` of them, once there were so many."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._parts: deque[Mapping[float, int]] = deque()
        self._total = 0

    def add(self, counts: Mapping[float, int]) -> None:
        if not counts:
            return
        self._parts.append(counts)
        self._total += sum(counts.values())
        while self._total - (oldest := sum(self._parts[0].values())) >= self._steps:
            self._parts.popleft()
            self._total -= oldest

    def pace(self, kind: str) -> Pace:
        latencies = Latencies()
        for part in self._parts:
            latencies.add(part)
        return Pace(kind, len(latencies), latencies.p50_s() or 0.0)


def slow(paces: Mapping[str, Pace], usual_s: Mapping[str, float], policy: SlowPolicy) -> dict[str, str]:
    """Sandbox id → in what way it is slow, slowest first. ``usual_s``: kind → the image's median of the past."""
    measured = {id_: pace for id_, pace in paces.items() if pace.steps >= policy.min_steps}
    found = []
    for id_, pace in measured.items():
        peers = [other.p50_s for other_id, other in measured.items() if other_id != id_ and other.kind == pace.kind]
        normal_s = statistics.median(peers) if len(peers) >= policy.min_peers else usual_s.get(pace.kind)
        if normal_s is not None and pace.p50_s >= policy.floor_s and pace.p50_s >= policy.ratio * normal_s > 0:
            what = f"a step takes it {_ms(pace.p50_s)}, {pace.p50_s / normal_s:.0f} times its image's {_ms(normal_s)}"
            found.append((pace.p50_s / normal_s, id_, what))
    return {id_: what for _, id_, what in sorted(found, reverse=True)}


def may_replace(living: int, replaced_at: Iterable[float], now: float, policy: SlowPolicy) -> int:
    """How many slow ones may be replaced now, given when earlier ones were."""
    recent = sum(1 for at in replaced_at if now - at < policy.window_s)
    return max(0, max(1, int(policy.max_share * living)) - recent)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
