"""Wire models → tidy frames. One row per thing, one unit per column, no formatting beyond what a table needs.

Nothing here reads, waits or keeps anything. The trainer names its metrics ``area/name``; ``Series`` lists the names
this page gives a meaning to, everything else is drawn under the name it came with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import pandas as pd

from dashboard import text
from rock.domain.sandbox import LIVING
from rock.sdk import (
    EventView,
    LedgerState,
    LedgerView,
    MetricPoint,
    NodeView,
    PoolView,
    SandboxState,
    SandboxStats,
    SandboxView,
)
from rock.wire.models import ProbeResult

MAX_POINTS = 600  # per line: more than a 1280 px screen can tell apart
NOW_STEPS = 10  # "now" is the mean of this many last steps


class Series(Enum):
    """What the page knows the meaning of, with the names it goes by, most specific first."""

    SUCCESS = ("rollout/success", "train/success")
    REWARD = ("rollout/reward", "rollout/reward_mean", "train/reward")
    VOID_RATE = ("rollout/void_rate", "rollout/void")
    TOKENS_PER_S = ("rollout/tokens_per_s", "engine/tokens_per_s", "throughput/tokens_per_s")
    STALENESS_MEAN = ("staleness/mean",)
    STALENESS_MAX = ("staleness/max",)
    STALENESS_TOKENS = ("staleness/token_mean",)
    STALENESS_AT_0 = ("staleness/at_0",)
    STALENESS_AT_1 = ("staleness/at_1",)
    STALENESS_AT_2 = ("staleness/at_2",)
    STALENESS_AT_3 = ("staleness/at_3",)
    STALENESS_AT_4_UP = ("staleness/at_4_up",)
    EVAL_SUCCESS = ("eval/success",)
    EVAL_LOW = ("eval/low",)
    EVAL_HIGH = ("eval/high",)

    def column(self, frame: pd.DataFrame) -> str | None:
        return next((name for name in self.value if name in frame.columns), None)

    def of(self, frame: pd.DataFrame) -> pd.Series:
        """The series by step without gaps; empty if the run does not report it."""
        column = self.column(frame)
        return frame[column].dropna() if column else pd.Series(dtype="float64")


KNOWN_NAMES = frozenset(name for series in Series for name in series.value)


# --- fleet -----------------------------------------------------------------------------------------------------------


def state_counts(sandboxes: Iterable[SandboxView]) -> dict[SandboxState, int]:
    """Living sandboxes by state, in the order of a sandbox's life; states nobody is in are left out."""
    counts = dict.fromkeys(SandboxState, 0)
    for sandbox in sandboxes:
        counts[sandbox.state] += 1
    return {state: n for state, n in counts.items() if n and state in LIVING}


def sandbox_frame(sandboxes: Iterable[SandboxView], now: datetime) -> pd.DataFrame:
    """One row per sandbox, the one that changed last first."""
    rows = [
        {
            "sandbox": s.id,
            "state": s.state.value,
            "for": text.duration((text.utc(now) - text.utc(s.changed_at)).total_seconds()),
            "environment": s.spec.env or NO_ENV,
            "image": s.spec.image,
            "node": s.node,
            "run": s.run_id,
            "lease": s.lease_id,
            "started in": text.duration(s.start_s),
            "memory limit": text.size(s.spec.limits.memory_bytes),
            "loosened": ", ".join(s.spec.loosened),
        }
        for s in sorted(sandboxes, key=lambda s: text.utc(s.changed_at), reverse=True)
    ]
    return pd.DataFrame(rows, columns=SANDBOX_COLUMNS)


NO_ENV = "(plain)"
SANDBOX_COLUMNS = [
    "sandbox",
    "state",
    "for",
    "environment",
    "image",
    "node",
    "run",
    "lease",
    "started in",
    "memory limit",
    "loosened",
]


def with_usage(frame: pd.DataFrame, taken: Mapping[str, SandboxStats]) -> pd.DataFrame:
    """The rows of :func:`sandbox_frame` and what their sandboxes take; what is not known is a dash."""

    def column(of: Callable[[SandboxStats], str]) -> list[str]:
        return [of(stats) if (stats := taken.get(s)) is not None else text.NOTHING for s in frame["sandbox"]]

    frame = frame.copy()
    after = frame.columns.get_loc("for") + 1
    for name, of in reversed(USAGE_COLUMNS.items()):
        frame.insert(after, name, column(of))
    return frame


USAGE_COLUMNS: dict[str, Callable[[SandboxStats], str]] = {
    "CPUs": lambda stats: f"{stats.cpu_share:.2f}",
    "memory": lambda stats: text.size(stats.memory_bytes),
    "processes": lambda stats: f"{stats.pids:,}",
    "disk": lambda stats: text.NOTHING if stats.disk_bytes is None else text.size(stats.disk_bytes),
}


def matching(frame: pd.DataFrame, needle: str, states: Sequence[str] = ()) -> pd.DataFrame:
    """Rows in one of ``states`` (all if empty) in which every word of ``needle`` occurs somewhere."""
    if states:
        frame = frame[frame["state"].isin(states)]
    if frame.empty or not needle.strip():
        return frame
    joined = frame.astype(str).agg(" ".join, axis=1).str.lower()
    keep = pd.Series(True, index=frame.index)
    for word in needle.lower().split():
        keep &= joined.str.contains(word, regex=False)
    return frame[keep]


@dataclass(frozen=True, slots=True)
class Failure:
    """One sandbox's end with what is known about it."""

    at: datetime
    sandbox: str
    node: str
    run_id: str
    cause: str
    detail: str
    evidence: tuple[tuple[str, str], ...] = ()
    last_output: tuple[str, ...] = ()


def failures(sandboxes: Iterable[SandboxView], events: Iterable[EventView]) -> list[Failure]:
    """Failures, latest first: from a sandbox's own evidence where it is still known, else from the event."""
    found: dict[str, Failure] = {}
    for event in events:
        if event.kind == "sandbox.failed" and event.subject not in found:
            cause, _, rest = event.detail.partition(":")
            short = cause.strip() if rest and " " not in cause.strip() else "failed"
            detail = rest.strip() if short != "failed" else event.detail
            found[event.subject] = Failure(event.at, event.subject, event.node, event.run_id, short, detail)
    for s in sandboxes:
        if s.evidence is None:
            continue
        e = s.evidence
        seen = found.get(s.id)
        facts = [("cause", e.cause)]
        if e.exit_code is not None:
            facts.append(("exit code", str(e.exit_code)))
        facts.append(("killed for memory", "yes" if e.oom_killed else "no"))
        if e.detected_after_s is not None:
            facts.append(("seen after", text.duration(e.detected_after_s)))
        if e.pressure is not None:
            p = e.pressure
            busy = f"CPU {p.cpu:.0%}, memory {p.memory:.0%}, disk {p.disk:.0%}, load per CPU {p.load_per_cpu:.1f}"
            facts.append(("the machine then", busy))
        if e.probes:
            facts.append(("last probes", ", ".join(_probe(probe) for probe in e.probes)))
        facts += [("image", s.spec.image), ("environment", s.spec.env or NO_ENV), ("lease", s.lease_id or text.NOTHING)]
        at = seen.at if seen else s.changed_at
        found[s.id] = Failure(at, s.id, s.node, s.run_id, e.cause, e.detail, tuple(facts), e.last_output)
    return sorted(found.values(), key=lambda f: text.utc(f.at), reverse=True)


def _probe(probe: ProbeResult) -> str:
    return f"{1000 * probe.latency_s:.0f} ms" if probe.ok else f"none in {probe.latency_s:.1f} s"


HEALED = {"lease.recovered": "resumed", "lease.diverged": "diverged", "lease.lost": "lost"}
"""Kinds of events that tell how the loss of a leased sandbox ended, and the word for it."""


def healing(events: Iterable[EventView], since: datetime) -> dict[str, int]:
    """How many losses of leased sandboxes after ``since`` ended how."""
    counts = dict.fromkeys(HEALED.values(), 0)
    for event in events:
        if event.kind in HEALED and text.utc(event.at) >= text.utc(since):
            counts[HEALED[event.kind]] += 1
    return counts


def pool_frame(nodes: Iterable[NodeView]) -> pd.DataFrame:
    """One row per warm pool of a node."""
    rows = [{"node": node.name, **_pool_row(pool)} for node in nodes for pool in node.pools]
    columns = ["node", "pool", "ready", "wanted", "starting", "claims", "misses"]
    return pd.DataFrame(rows, columns=columns)


def _pool_row(pool: PoolView) -> dict[str, object]:
    return {
        "pool": pool.env or pool.image,
        "ready": pool.ready,
        "wanted": pool.target,
        "starting": pool.starting,
        "claims": pool.claims,
        "misses": pool.misses,
    }


def event_frame(events: Iterable[EventView], now: datetime) -> pd.DataFrame:
    """One row per event, latest first."""
    ordered = sorted(events, key=lambda e: (text.utc(e.at), e.id), reverse=True)
    rows = [
        {
            "time": text.clock(e.at, now),
            "event": e.kind,
            "about": e.subject,
            "detail": e.detail,
            "node": e.node,
            "run": e.run_id,
        }
        for e in ordered
    ]
    return pd.DataFrame(rows, columns=["time", "event", "about", "detail", "node", "run"])


# --- run -------------------------------------------------------------------------------------------------------------


def metric_frame(points: Iterable[MetricPoint]) -> pd.DataFrame:
    """One row per step (index ``step``), one column per metric, and ``at``. What was reported last for a step wins;
    points of one step that hold different metrics are joined."""
    merged: dict[int, dict[str, object]] = {}
    for point in points:
        merged.setdefault(point.step, {}).update({"at": text.utc(point.at), **point.values})
    if not merged:
        return pd.DataFrame(index=pd.Index([], name="step"), columns=["at"])
    frame = pd.DataFrame.from_dict(merged, orient="index").sort_index()
    frame.index.name = "step"
    return frame


def smooth(series: pd.Series, steps: int = NOW_STEPS) -> pd.Series:
    """Mean of each point and the ``steps - 1`` before it."""
    return series.rolling(steps, min_periods=1).mean()


def thin(series: pd.Series, limit: int = MAX_POINTS) -> tuple[pd.Series, int]:
    """At most ``limit`` points, each the mean of ``k`` neighbours; and ``k``."""
    k = -(-len(series) // limit)
    if k <= 1:
        return series, 1
    groups = pd.Series(range(len(series)), index=series.index) // k
    steps = pd.Series(series.index, index=series.index).groupby(groups).last()
    means = series.groupby(groups).mean()
    means.index = pd.Index(steps.to_numpy(), name=series.index.name)
    return means, k


def other_metrics(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Metrics without a meaning of their own here, by area: ``{"learner": ["learner/loss", …]}``.

    Those reported for one step only are no curve; see :func:`single_values`."""
    areas: dict[str, list[str]] = {}
    for name in sorted(set(frame.columns) - KNOWN_NAMES - {"at"}):
        if frame[name].count() > 1:
            areas.setdefault(str(name).partition("/")[0], []).append(str(name))
    return areas


def single_values(frame: pd.DataFrame) -> list[tuple[str, float, int]]:
    """Metrics reported once, such as the loss of the warm start: name, value, step."""
    found = []
    for name in sorted(set(frame.columns) - KNOWN_NAMES - {"at"}):
        values = frame[name].dropna()
        if len(values) == 1:
            found.append((str(name), float(values.iloc[0]), int(values.index[0])))
    return found


ACCOUNT_MEANING: dict[LedgerState, str] = {
    LedgerState.TRAINED: "reached the loss",
    LedgerState.FILTERED: "group had no signal: all its rewards equal",
    LedgerState.STALE: "too old to train on",
    LedgerState.VOID: "something broke; replaced, never trained on",
    LedgerState.CANCELLED: "redundant, or the run ended",
    LedgerState.EVALUATED: "played to measure, not to train",
    LedgerState.IN_FLIGHT: "being played now",
}


@dataclass(frozen=True, slots=True)
class Account:
    state: LedgerState
    meaning: str
    episodes: int
    share: float
    tokens: int
    sandbox_s: float


def accounts(ledger: LedgerView) -> list[Account]:
    """Every account of the ledger in a fixed order; shares are of the dispatched episodes."""
    total = max(1, ledger.dispatched)
    return [
        Account(
            state=state,
            meaning=meaning,
            episodes=(n := ledger.accounts.get(state, 0)),
            share=n / total,
            tokens=ledger.tokens.get(state, 0),
            sandbox_s=ledger.sandbox_s.get(state, 0.0),
        )
        for state, meaning in ACCOUNT_MEANING.items()
    ]


def unbalanced(ledger: LedgerView) -> int:
    """Dispatched minus booked: 0, or the ledger is broken."""
    return ledger.dispatched - sum(ledger.accounts.values())


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured rate with its 95 % interval."""

    label: str
    rate: float
    low: float
    high: float
    n: int


def before_after(summary: Mapping[str, object]) -> list[Interval]:
    """``success_before`` and ``success_after`` of a run's summary, those that are there and well-formed."""
    out = []
    for key, label in (("success_before", "before RL"), ("success_after", "after RL")):
        match summary.get(key):
            case {
                "rate": int() | float() as rate,
                "low": int() | float() as low,
                "high": int() | float() as high,
                **rest,
            }:
                n = rest.get("n")
                count = int(n) if isinstance(n, int | float) else 0
                out.append(Interval(label, float(rate), float(low), float(high), count))
    return out
