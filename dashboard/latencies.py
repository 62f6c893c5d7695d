"""How long environments take, held against their objectives; the slowest pools and nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rock.sdk import LatencyView, NodeView

SLOWER_THAN_OTHERS = 1.5
"""A node's median step this many times that of the pool's other nodes is worth a line."""
WHAT = {"open": "getting a sandbox", "reset": "reset", "step": "step", "generate": "model's answer"}


@dataclass(frozen=True, slots=True)
class Latency:
    """``objective_s``: None where there is none for it."""

    env: str
    what: str
    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    objective_s: float | None

    @property
    def met(self) -> bool | None:
        return None if self.objective_s is None else self.p95_s <= self.objective_s


def against_objectives(measured: Sequence[LatencyView], objectives: Mapping[str, Mapping[str, float]]) -> list[Latency]:
    """By environment, in the order in which an episode meets them. ``objectives``: p95 in seconds, by environment."""
    order = list(WHAT)
    rows = [
        Latency(v.env, v.what, v.count, v.p50_s, v.p95_s, v.p99_s, objectives.get(v.env, {}).get(v.what))
        for v in measured
    ]
    return sorted(rows, key=lambda r: (r.env, order.index(r.what) if r.what in order else len(order)))


@dataclass(frozen=True, slots=True)
class Slow:
    pool: str
    node: str
    step_p50_s: float
    times: float | None
    """How many times the median of the pool's other nodes; None where it is the only one."""


def slowest(nodes: Iterable[NodeView], limit: int = 5) -> list[Slow]:
    """Median step latencies by pool and node, the slowest first."""
    by_pool: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for node in nodes:
        names |= {pool.digest: pool.env or pool.image for pool in node.pools}
        for digest, seconds in node.step_p50_s.items():
            by_pool.setdefault(digest, {})[node.name] = seconds
    rows = []
    for digest, of_nodes in by_pool.items():
        for name, seconds in of_nodes.items():
            others = [s for other, s in of_nodes.items() if other != name]
            times = seconds / median(others) if others and median(others) > 0 else None
            rows.append(Slow(names.get(digest, digest), name, seconds, times))
    return sorted(rows, key=lambda r: -r.step_p50_s)[:limit]
