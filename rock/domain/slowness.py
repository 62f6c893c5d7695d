"""Which sandboxes are too slow to be healthy, judged against others of the same kind. Pure.

A sandbox that answers probes and takes ten times as long for a step as its peers holds its whole group up; it fails
without dying. It is measured by what its guest measured: the time a step takes inside, without network and queues.
That is time on the clock, so a step that wants a processor which others have takes longer and ails nothing: how long it
may then take grows with the *crowd*, the processes that want each processor of the machine.

Invariants: nobody is slow without peers, or a past, to compare with; a fleet that is slow as a whole has no outliers;
never more than a bounded share is called slow at a time; a larger crowd never makes anybody slow.
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
    quiet_floor_s: float = 0.005
    """Below this nobody is slow, whatever the ratio: a step of microseconds is at times one of a millisecond."""
    crowded_floor_s: float = 0.01
    """By how much that grows for each process that wants a processor, per processor: each of them may have it for some
    milliseconds first. At 12 of them (load 25 on two processors), sandboxes that nothing ailed had medians of 28 to 65
    ms where their peers had 1."""
    min_steps: int = 10
    """Steps that a median needs, the sandbox's own and its peers'."""
    min_peers: int = 2
    """With fewer, the image's past is what it is compared with: multiplied by the crowd, which the past had not."""
    max_share: float = 0.1
    """Of the living sandboxes that may be replaced for slowness within ``window_s``; one always may."""
    window_s: float = 60.0

    def limit_s(self, normal_s: float, crowd: float, *, of_the_past: bool) -> float:
        """From which median on a sandbox is slow."""
        floor_s = self.quiet_floor_s + self.crowded_floor_s * crowd
        return max(floor_s, self.ratio * normal_s * (max(1.0, crowd) if of_the_past else 1.0))


@dataclass(frozen=True, slots=True)
class Pace:
    """The recent steps of one sandbox."""

    kind: str
    """What it is compared with: the digest of its spec."""
    steps: int
    p50_s: float
    crowd: float = 0.0
    """The largest crowd there was while they were made: processes that want a processor, per processor."""


class Crowd:
    """The largest crowd of the last ``hold_s``: who was held up by it tells of it only some time later."""

    def __init__(self, hold_s: float = 10.0) -> None:
        self._hold_s = hold_s
        self._peaks: deque[tuple[float, float]] = deque()  # ever smaller ones, the oldest first

    def note(self, now: float, size: float) -> None:
        while self._peaks and self._peaks[-1][1] <= size:
            self._peaks.pop()
        self._peaks.append((now, size))

    def peak(self, now: float) -> float:
        while len(self._peaks) > 1 and now - self._peaks[0][0] > self._hold_s:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0.0


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
        self._parts: deque[tuple[Mapping[float, int], float]] = deque()
        self._total = 0

    def add(self, counts: Mapping[float, int], crowd: float = 0.0) -> None:
        if not counts:
            return
        self._parts.append((counts, crowd))
        self._total += sum(counts.values())
        while self._total - (oldest := sum(self._parts[0][0].values())) >= self._steps:
            self._parts.popleft()
            self._total -= oldest

    def pace(self, kind: str) -> Pace:
        latencies = Latencies()
        for counts, _ in self._parts:
            latencies.add(counts)
        crowd = max((crowd for _, crowd in self._parts), default=0.0)
        return Pace(kind, len(latencies), latencies.p50_s() or 0.0, crowd)


def slow(paces: Mapping[str, Pace], usual_s: Mapping[str, float], policy: SlowPolicy) -> dict[str, str]:
    """Sandbox id → in what way it is slow, slowest first. ``usual_s``: kind → the image's median of the past."""
    measured = {id_: pace for id_, pace in paces.items() if pace.steps >= policy.min_steps}
    found = []
    for id_, pace in measured.items():
        peers = [other.p50_s for other_id, other in measured.items() if other_id != id_ and other.kind == pace.kind]
        alone = len(peers) < policy.min_peers
        normal_s = usual_s.get(pace.kind) if alone else statistics.median(peers)
        if normal_s and pace.p50_s >= policy.limit_s(normal_s, pace.crowd, of_the_past=alone):
            what = f"a step takes it {_ms(pace.p50_s)}, {pace.p50_s / normal_s:.0f} times its image's {_ms(normal_s)}"
            found.append((pace.p50_s / normal_s, id_, what))
    return {id_: what for _, id_, what in sorted(found, reverse=True)}


def may_replace(living: int, replaced_at: Iterable[float], now: float, policy: SlowPolicy) -> int:
    """How many slow ones may be replaced now, given when earlier ones were."""
    recent = sum(1 for at in replaced_at if now - at < policy.window_s)
    return max(0, max(1, int(policy.max_share * living)) - recent)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
