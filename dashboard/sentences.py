"""What a person wants to know in ten seconds, in plain words. Pure: facts in, sentence and tone out.

A sentence never claims more than the numbers do: every rate names its window, time left is said to be an estimate, and
silence of the trainer is said to be silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from dashboard import text
from dashboard.frames import NOW_STEPS, Interval, Series, before_after, state_counts
from dashboard.palette import Tone
from dashboard.source import Reading
from rock.domain.nodes import NodeStanding
from rock.sdk import (
    EventView,
    Health,
    LedgerState,
    LedgerView,
    NodeView,
    RunStatus,
    RunView,
    SandboxState,
    SandboxView,
)

SILENT_S = 120.0  # a step of the slowest recipe here takes seconds; see also SILENT_STEPS
QUIET_WORK_S = 900.0  # starting and warm start report nothing until they are done
SILENT_STEPS = 6.0
PACE_STEPS = 20  # steps from which the time left is estimated
VOID_WORRIES = 0.05  # above it, the platform rather than the policy decides what is learned from

ALERTS = "alerts/firing"
_FIRING = re.compile(r"^alert (\S+) firing: ")

INCIDENTS = frozenset(
    {
        "sandbox.failed",
        "lease.expired",
        "node.down",
        "node.dead",
        "control.restarted",
        "guardian.restarted",
        "quarantine.added",
    }
)
EVENT_WORDS: dict[str, str] = {
    "sandbox.failed": "a sandbox failed",
    "sandbox.adopted": "a sandbox was found again after a restart",
    "sandbox.orphan": "a sandbox nobody wanted was removed",
    "sandbox.fenced": "a sandbox was cut off: its lease is elsewhere",
    "sandbox.oom": "something in a sandbox was killed for its memory",
    "sandbox.env_died": "an environment's process died",
    "lease.recovering": "a lease lost its sandbox and gets another",
    "lease.moving": "a lease moves to another sandbox, off one that is well",
    "lease.rebound": "a lease has another sandbox",
    "lease.recovered": "an episode went on in another sandbox",
    "lease.diverged": "a replay came out differently",
    "lease.lost": "a lease lost its sandbox for good",
    "lease.expired": "a lease expired: its holder fell silent",
    "node.up": "a node is up",
    "node.down": "a node's runtime does not answer",
    "node.dead": "a node is dead",
    "node.suspect": "a node fell silent",
    "node.ejected": "a node is slower than the others and left out",
    "node.cordoned": "a node gets no new leases",
    "node.draining": "a node is being emptied",
    "node.drained": "a node is empty",
    "node.joined": "a node joined",
    "node.left": "a node left",
    "control.restarted": "the platform died and was started again",
    "guardian.restarted": "the platform's guardian died and has a successor",
    "quarantine.added": "refused after failing again and again",
    "quarantine.cleared": "out of quarantine",
    "run.started": "the run was begun",
    "run.starting": "the run starts, or goes on from a checkpoint",
    "run.warm_start": "the run warm-starts on demonstrations",
    "run.evaluating": "the run evaluates",
    "run.training": "the run trains",
    "run.completed": "the run has completed",
    "run.failed": "the run has failed",
    "run.stopped": "the run was stopped",
    "run.interrupted": "the run was interrupted",
    "run.paused": "an alert paused the run",
}


def event_words(kind: str) -> str:
    """What an event's kind means; one that this page does not know keeps its name."""
    return EVENT_WORDS.get(kind, kind.replace(".", " ").replace("_", " "))


ACTIVE: frozenset[RunStatus] = frozenset({"starting", "warm_start", "evaluating", "training"})

DOING: dict[RunStatus, str] = {
    "starting": "is starting",
    "warm_start": "is warm-starting on demonstrations",
    "evaluating": "is evaluating",
    "training": "is training",
    "completed": "has completed",
    "failed": "has failed",
    "stopped": "was stopped",
    "interrupted": "was interrupted",
    "paused": "is paused by an alert",
}
TONES: dict[RunStatus, Tone] = {
    "completed": Tone.GOOD,
    "failed": Tone.BAD,
    "interrupted": Tone.VOID,
    "paused": Tone.VOID,
    "stopped": Tone.NEUTRAL,
}


_SICK = frozenset({NodeStanding.SUSPECT, NodeStanding.DEAD, NodeStanding.EJECTED})
_RESTING = frozenset({NodeStanding.CORDONED, NodeStanding.DRAINING})


@dataclass(frozen=True, slots=True)
class Sentence:
    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The numbers the run page leads with. None: not reported."""

    step: int
    total_steps: int
    success: float | None
    success_first: float | None
    reward: float | None
    tokens_per_s: float | None
    staleness: float | None
    staleness_max: float | None
    void_rate: float | None
    """Of the whole run, from the ledger: void episodes over all that ended."""
    voids: int
    episodes: int
    left_s: float | None
    took_s: float
    """From the run's creation to the last word of its trainer."""
    step_s: float | None
    silent_s: float
    heard_at: datetime
    incidents: int
    last_incident: EventView | None


def run_facts(
    run: RunView, metrics: pd.DataFrame, ledger: LedgerView | None, events: Sequence[EventView], now: datetime
) -> RunFacts:
    step = max(run.step, int(metrics.index.max()) if len(metrics) else 0)
    step_s = pace(metrics)
    ended = ledger.dispatched - ledger.accounts.get(LedgerState.IN_FLIGHT, 0) if ledger else 0
    voids = ledger.accounts.get(LedgerState.VOID, 0) if ledger else 0
    heard_at = min(text.utc(now), text.utc(run.updated_at))
    incidents = sorted((e for e in events if e.kind in INCIDENTS), key=lambda e: text.utc(e.at))
    left = (run.total_steps - step) * step_s if step_s is not None and run.status == "training" else None
    success = Series.SUCCESS.of(metrics)
    return RunFacts(
        step=step,
        total_steps=run.total_steps,
        success=_recent(success),
        success_first=float(success.head(NOW_STEPS).mean()) if len(success) >= 2 * NOW_STEPS else None,
        reward=_recent(Series.REWARD.of(metrics)),
        tokens_per_s=_recent(Series.TOKENS_PER_S.of(metrics)),
        staleness=_recent(Series.STALENESS_MEAN.of(metrics)),
        staleness_max=_most_recent_max(Series.STALENESS_MAX.of(metrics)),
        void_rate=voids / ended if ended else None,
        voids=voids,
        episodes=ended,
        left_s=max(0.0, left) if left is not None else None,
        took_s=(heard_at - text.utc(run.created_at)).total_seconds(),
        step_s=step_s,
        silent_s=(text.utc(now) - heard_at).total_seconds(),
        heard_at=heard_at,
        incidents=len(incidents),
        last_incident=incidents[-1] if incidents else None,
    )


def _recent(series: pd.Series) -> float | None:
    return float(series.tail(NOW_STEPS).mean()) if len(series) else None


def _most_recent_max(series: pd.Series) -> float | None:
    return float(series.tail(NOW_STEPS).max()) if len(series) else None


def pace(metrics: pd.DataFrame) -> float | None:
    """Seconds a step takes now: the median over the last steps, so that one pause does not count."""
    if len(metrics) < 2:
        return None
    at = metrics["at"].dropna().tail(PACE_STEPS + 1)
    seconds = at.diff().dt.total_seconds().dropna()
    steps = pd.Series(at.index, index=at.index).diff().dropna()
    per_step = (seconds / steps)[lambda s: s > 0]
    return float(per_step.median()) if len(per_step) else None


def silent(run: RunView, facts: RunFacts) -> bool:
    """Whether an unfinished run has said nothing for longer than its own pace explains."""
    patience = max(SILENT_S, SILENT_STEPS * (facts.step_s or 0.0))
    if run.status in {"starting", "warm_start"}:
        patience = QUIET_WORK_S
    return run.status in ACTIVE and facts.silent_s > patience


def run_sentence(run: RunView, facts: RunFacts, incidents: str | None = None) -> Sentence:
    """``incidents``: what to say of them instead of how many events told of one."""
    parts = [f"{run.name} {DOING[run.status]}{_progress(run, facts)}."]
    tone = TONES.get(run.status, Tone.GOOD)
    if silent(run, facts):
        parts = [
            f"{run.name} has said nothing for {text.duration(facts.silent_s)}"
            f" (last at {text.clock(facts.heard_at)}, while {run.status.replace('_', ' ')}{_progress(run, facts)})."
        ]
        tone = Tone.VOID
    if run.status in {"failed", "interrupted", "stopped", "paused"} and run.detail:
        parts.append(run.detail.rstrip(".") + ".")
    parts.append(_result(run, facts))
    if facts.void_rate is not None:
        parts.append(_voids(facts))
        if facts.void_rate > VOID_WORRIES and tone is Tone.GOOD:
            tone = Tone.VOID
    if facts.left_s is not None and not silent(run, facts):
        parts.append(f"About {text.duration(facts.left_s)} left at the present pace.")
    parts.append(_incidents(run, facts) if incidents is None else incidents)
    return Sentence(tone, " ".join(p for p in parts if p))


def _progress(run: RunView, facts: RunFacts) -> str:
    if run.status in {"starting", "warm_start"} or not facts.total_steps:
        return f": step {facts.step:,}" if facts.step else ""
    if run.status == "completed" and facts.step >= facts.total_steps:
        return f" all {facts.total_steps:,} steps"
    return f": step {facts.step:,} of {facts.total_steps:,}"


def _result(run: RunView, facts: RunFacts) -> str:
    measured = before_after(run.summary)
    if len(measured) == 2:
        before, after = measured
        gain = (after.rate - before.rate) * 100
        verdict = verdict_of(before, after)
        return (
            f"Held-out success went from {text.percent(before.rate)} to {text.percent(after.rate)}"
            f" ({gain:+.0f} points{verdict})."
        )
    if facts.success is None:
        return ""
    now = f"Success {text.percent(facts.success)} over the last {min(NOW_STEPS, max(1, facts.step))} steps"
    return (
        f"{now}, {text.percent(facts.success_first)} over the first." if facts.success_first is not None else f"{now}."
    )


def verdict_of(before: Interval, after: Interval) -> str:
    """What the intervals allow to say about the difference."""
    if after.low > before.high or after.high < before.low:
        return ""
    return "; the 95% intervals overlap"


def _voids(facts: RunFacts) -> str:
    if facts.voids == 0:
        return f"No episode void of {facts.episodes:,}."
    return f"{facts.voids:,} of {facts.episodes:,} episodes void ({text.percent(facts.void_rate, 1)}), none trained on."


def _incidents(run: RunView, facts: RunFacts) -> str:
    if facts.last_incident is None:
        return "No incidents." if facts.episodes else ""
    last = facts.last_incident
    what = event_words(last.kind) + (f": {last.detail}" if last.detail else "")
    when = text.clock(last.at)
    going_on = " The run went on." if facts.heard_at > text.utc(last.at) and run.status != "failed" else ""
    one = facts.incidents == 1
    return f"{text.plural(facts.incidents, 'incident')}, {'' if one else 'the last '}at {when} ({what}).{going_on}"


def alert_sentence(run: RunView, metrics: pd.DataFrame) -> Sentence | None:
    """What its alerts say of a run now: from the last step that counted them, or that one of them paused it."""
    if run.status == "paused":
        return Sentence(Tone.BAD, f"Paused by an alert. {run.detail}".strip())
    if ALERTS not in metrics.columns or run.status not in ACTIVE:
        return None
    firing = metrics[ALERTS].dropna()
    if firing.empty or firing.iloc[-1] <= 0:
        return None
    count = text.plural(int(firing.iloc[-1]), "alert")
    why = _FIRING.sub(r"\1: ", run.detail)
    said = f"{count} firing as of step {int(firing.index[-1]):,}"
    return Sentence(Tone.BAD, f"{said}: {why}" if why else f"{said}.")


def incidents_sentence(endings: Mapping[str, int], unaccounted: int, episodes: int) -> str:
    """``endings``: incidents by verdict; ``unaccounted``: episodes dispatched and booked nowhere."""
    total = sum(endings.values())
    said = "No incidents"
    if total:
        said = f"{text.plural(total, 'incident')}: " + ", ".join(f"{n:,} {word}" for word, n in endings.items())
    lost = f" Episodes lost: {abs(unaccounted):,}." if episodes else ""
    return f"{said}.{lost}"


# --- fleet -----------------------------------------------------------------------------------------------------------


def fleet_sentence(
    health: Health | None,
    nodes: Sequence[NodeView],
    sandboxes: Sequence[SandboxView],
    recent_failures: int,
    window: str,
) -> Sentence:
    """The fleet in one sentence. ``recent_failures`` are those of ``window``, for example ``the last hour``."""
    if not nodes:
        return Sentence(Tone.BAD, "The platform runs but has no node: nothing can be started.")
    sick = [n.name for n in nodes if not n.healthy or n.standing in _SICK]
    resting = [n.name for n in nodes if n.standing in _RESTING]
    counts = state_counts(sandboxes)
    living = sum(counts.values())
    suspect = counts.get(SandboxState.SUSPECT, 0)
    leased = counts.get(SandboxState.LEASED, 0) + suspect
    parts = [
        f"{text.plural(len(nodes), 'node')} up"
        if not sick
        else f"{len(sick)} of {len(nodes)} nodes unhealthy ({', '.join(sick)})",
        f"{', '.join(resting)} taken out by an operator" if resting else "",
        f"{text.plural(living, 'sandbox', 'sandboxes')} alive",
        f"{leased:,} at work, {counts.get(SandboxState.READY, 0):,} ready",
        f"{suspect:,} not answering" if suspect else "",
        f"{text.plural(recent_failures, 'failure')} in {window}" if recent_failures else f"no failure in {window}",
    ]
    tone = Tone.BAD if sick else Tone.GOOD
    if tone is Tone.GOOD and (suspect or (health is not None and health.status != "ok")):
        tone = Tone.VOID
    end = (
        f" Platform degraded: {health.detail}" if health is not None and health.status != "ok" and health.detail else ""
    )
    return Sentence(tone, "; ".join(p for p in parts if p) + "." + end)


def healing_sentence(counts: Mapping[str, int], window: str) -> str:
    """What became of the leases whose sandbox died. ``counts``: by :data:`dashboard.frames.HEALED`'s words."""
    total = sum(counts.values())
    if not total:
        return f"no leased sandbox was lost in {window}"
    said = {
        "resumed": f"{counts['resumed']:,} went on in another sandbox where they were",
        "diverged": f"{counts['diverged']:,} did not replay the same and are void",
        "lost": f"{counts['lost']:,} could not be replaced and are void",
    }
    return f"{text.plural(total, 'loss', 'losses')} in {window}: " + ", ".join(
        words for kind, words in said.items() if counts[kind]
    )


def staleness_sentence(reading: Reading[object], url: str, now: datetime) -> Sentence | None:
    """What to say when a reading is not of this moment; None when it is. ``url``: where was asked, if anywhere."""
    if not reading.stale or reading.error is None:
        return None
    if not reading.unreachable:
        return Sentence(Tone.BAD, f"The platform refused: {reading.error}")
    since = f" since {text.clock(reading.since, now)}" if reading.since else ""
    if reading.at is None:
        found = f"No platform answers at {url}" if url else reading.error.message.rstrip(".")
        return Sentence(Tone.BAD, f"{found}{since}.")
    return Sentence(
        Tone.BAD, f"Platform unreachable{since}. What you see is the last data, of {text.clock(reading.at, now)}."
    )
