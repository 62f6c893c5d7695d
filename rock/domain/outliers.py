"""Which nodes are too slow to get new leases, judged against the others. Pure; time is passed in.

Steps of the same kind of sandbox (the same pool) must take about the same time everywhere. A node whose steps take a
multiple of the median of the other nodes, in several looks running, is ejected: first for a short time, then for twice
as long each time, until it has been well for a while (as Envoy's outlier detection does).

Invariants: at most a third of the fleet is ejected at a time; a fleet that is slow as a whole has no outlier; nobody is
judged by fewer than two others; after its time a node is tried with a few leases before it gets its share again.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Latencies = Mapping[str, Mapping[str, float]]
"""Node → pool → median seconds of a step."""


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    ratio: float = 2.0
    """So many times the median of the others."""
    floor_s: float = 0.002
    """Slower than the others by less than this is nobody's trouble: at microseconds a step the ratio is noise."""
    looks: int = 2
    """Outlier in so many looks running. The figures are medians already; two keep a single odd look from counting."""
    min_peers: int = 2
    base_s: float = 30.0
    cap_s: float = 600.0
    trial_s: float = 20.0
    """So long after its return a node is on trial; long enough for the few leases it gets to be measured."""
    trial_leases: int = 2
    max_share: float = 1 / 3


@dataclass(frozen=True, slots=True)
class Ejection:
    node: str
    until: float
    ratio: float
    """How many times slower than the others it was."""
    times: int
    """Ejected so often of late, this time included."""


@dataclass(slots=True)
class _Record:
    strikes: int = 0
    times: int = 0
    until: float = float("-inf")
    well_at: float = float("-inf")
    """Since when it has been well, for forgetting the ejections of the past one by one."""
    latencies: Mapping[str, float] = field(default_factory=dict)
    """What it was ejected for. The same figures again are old ones: nobody has stepped there since."""


def slowness(latencies: Latencies, policy: OutlierPolicy) -> dict[str, float]:
    """Node → how many times slower than the others its steps are: the median over the pools it can be judged by.

    A node without a pool that enough others have, too, is missing; one that is not slower by ``floor_s`` counts as 1.
    """
    found = {}
    for node, pools in latencies.items():
        ratios = []
        for pool, own_s in pools.items():
            others = [peer[pool] for name, peer in latencies.items() if name != node and pool in peer]
            if len(others) >= policy.min_peers:
                normal_s = statistics.median(others)
                slower = own_s - normal_s >= policy.floor_s
                ratios.append(own_s / max(normal_s, 1e-9) if slower else min(1.0, own_s / max(normal_s, 1e-9)))
        if ratios:
            found[node] = statistics.median(ratios)
    return found


class OutlierBook:
    def __init__(self, policy: OutlierPolicy | None = None) -> None:
        self.policy = policy or OutlierPolicy()
        self._records: dict[str, _Record] = {}

    def ejected(self, now: float) -> set[str]:
        return {node for node, record in self._records.items() if now < record.until}

    def on_trial(self, node: str, now: float) -> bool:
        record = self._records.get(node)
        return record is not None and record.until <= now < record.until + self.policy.trial_s

    def forget(self, node: str) -> None:
        """It has left, or died: it returns with a clean record."""
        self._records.pop(node, None)

    def judge(self, now: float, latencies: Latencies, fleet: Collection[str]) -> list[Ejection]:
        """The nodes to eject now, slowest first. ``fleet``: every node that lives; only those are judged."""
        out = self.ejected(now)
        # The ejected serve as nobody's measure: they are known to be slow.
        sound = {node: pools for node, pools in latencies.items() if node in fleet and node not in out}
        ratios = slowness(sound, self.policy)
        outliers = []
        for node in fleet:
            record = self._records.setdefault(node, _Record())
            if node in out:
                continue
            ratio = ratios.get(node, 1.0)
            stale = bool(record.times) and latencies.get(node) == record.latencies
            record.strikes = record.strikes + 1 if ratio >= self.policy.ratio and not stale else 0
            if record.strikes >= self.policy.looks:
                outliers.append((ratio, node))
            elif record.times and now - record.well_at >= self._duration_s(record.times):
                record.times -= 1  # well for as long as it was out: the next ejection is a shorter one
                record.well_at = now
        room = int(self.policy.max_share * len(fleet)) - len(out & set(fleet))
        chosen = sorted(outliers, reverse=True)[: max(0, room)]
        return [self._eject(node, ratio, now, latencies[node]) for ratio, node in chosen]

    def _eject(self, node: str, ratio: float, now: float, latencies: Mapping[str, float]) -> Ejection:
        record = self._records[node]
        record.times += 1
        record.strikes = 0
        record.until = record.well_at = now + self._duration_s(record.times)
        record.latencies = dict(latencies)
        return Ejection(node, record.until, ratio, record.times)

    def _duration_s(self, times: int) -> float:
        return min(self.policy.cap_s, self.policy.base_s * 2.0 ** min(times - 1, 32))
