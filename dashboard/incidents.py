"""Events and evidence → incidents: what broke, how soon it was seen and mended, which episodes it touched, the verdict.

Pure. Invariants: the loss of one leased sandbox is one incident, however many events tell of it; moving a lease off a
draining node is none; seconds come from evidence or from the times of two events, never from a guess; what has no last
word yet is *open*.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dashboard import text
from dashboard.frames import HEALED, Failure, failures
from dashboard.palette import Tone
from rock.sdk import EventView, SandboxView

RUN_KINDS = (
    "sandbox.failed",
    "lease.recovering",
    "lease.moving",
    "lease.rebound",
    "lease.recovered",
    "lease.diverged",
    "lease.lost",
    "lease.expired",
)
"""Events of a run's own sandboxes that an incident is made of."""
PLATFORM_KINDS = (
    "node.down",
    "node.dead",
    "node.up",
    "control.restarted",
    "guardian.restarted",
    "quarantine.added",
    "quarantine.cleared",
)
"""Those of the platform, which touch every run."""

OPEN = "open"
VERDICTS: dict[str, tuple[Tone, str]] = {
    "resumed": (Tone.GOOD, "the episode went on where it was, in another sandbox"),
    "rebound": (Tone.GOOD, "the lease has another sandbox; its holder has not said more"),
    "replaced": (Tone.GOOD, "nobody held it"),
    "restarted": (Tone.GOOD, "the process is back"),
    "back": (Tone.GOOD, "the node is back"),
    "cleared": (Tone.GOOD, "it is tried again"),
    "diverged": (Tone.VOID, "the replay came out differently; the episode is void and played anew"),
    "lost": (Tone.VOID, "nothing took its place; the episode is void and played anew"),
    "taken back": (Tone.VOID, "its holder fell silent, and the sandbox was taken back"),
    "held": (Tone.NEUTRAL, "it is refused until it is tried again or somebody clears it"),
    OPEN: (Tone.VOID, "no last word on it yet"),
}
"""How an incident ended: its tone and what the word means."""

_SANDBOX = re.compile(r"sandbox (\S+?):? ")
_NODE_WINDOW_S = 120.0
"""Leases lost on a node this long after it went down are put down to it."""


@dataclass(slots=True)
class Incident:
    at: datetime
    what: str
    """In words: ``sandbox sb-1``, ``node n1``."""
    cause: str
    detail: str
    node: str = ""
    run_id: str = ""
    sandbox: str = ""
    verdict: str = OPEN
    detected_s: float | None = None
    """From the last sign of life to the verdict, where the evidence tells it."""
    recovered_s: float | None = None
    """From the event that told of it to the one that told of its end."""
    touched: int = 0
    """Episodes that were being played in what broke."""
    failure: Failure | None = None
    story: list[EventView] = field(default_factory=list)
    """The events it is made of, in order."""


def incidents(events: Iterable[EventView], sandboxes: Sequence[SandboxView] = ()) -> list[Incident]:
    """The latest first. ``sandboxes``: those that failed, for their evidence."""
    ordered = sorted(events, key=lambda e: (text.utc(e.at), e.id))
    evidence = {f.sandbox: f for f in failures(sandboxes, [])}
    builder = _Builder({s.id: s for s in sandboxes}, evidence)
    for event in ordered:
        builder.take(event)
    return sorted(builder.found, key=lambda i: text.utc(i.at), reverse=True)


class _Builder:
    def __init__(self, sandboxes: dict[str, SandboxView], evidence: dict[str, Failure]) -> None:
        self._sandboxes, self._evidence = sandboxes, evidence
        self.found: list[Incident] = []
        self._of_sandbox: dict[str, Incident] = {}
        self._of_lease: dict[str, Incident] = {}
        self._of_subject: dict[str, Incident] = {}

    def take(self, event: EventView) -> None:
        area, _, word = event.kind.partition(".")
        if event.kind == "sandbox.failed":
            self._sandbox(event, event.subject, event.detail)
        elif area == "lease":
            self._lease(event, word)
        elif event.kind in {"control.restarted", "guardian.restarted"}:
            what = "the platform" if area == "control" else "the guardian"
            self._begin(Incident(event.at, what, "restarted", event.detail, verdict="restarted"), event)
        elif event.kind in {"node.down", "node.dead"}:
            self._subject(event, f"node {event.subject}", word, OPEN)
        elif event.kind == "quarantine.added":
            self._subject(event, event.subject, "quarantined", "held")
        elif event.kind in {"node.up", "quarantine.cleared"}:
            incident = self._of_subject.pop(event.subject, None)
            if incident is not None:
                self._end(incident, event, "back" if area == "node" else "cleared")

    def _begin(self, incident: Incident, event: EventView) -> Incident:
        incident.story.append(event)
        self.found.append(incident)
        return incident

    def _end(self, incident: Incident, event: EventView, verdict: str) -> None:
        incident.story.append(event)
        incident.verdict = verdict
        incident.recovered_s = (text.utc(event.at) - text.utc(incident.at)).total_seconds()

    def _subject(self, event: EventView, what: str, cause: str, verdict: str) -> None:
        if event.subject in self._of_subject:  # suspected first, then dead: one incident
            self._of_subject[event.subject].story.append(event)
            return
        incident = Incident(event.at, what, cause, event.detail, event.node, event.run_id, verdict=verdict)
        self._of_subject[event.subject] = self._begin(incident, event)

    def _sandbox(self, event: EventView, sandbox: str, detail: str) -> Incident:
        known = self._of_sandbox.get(sandbox)
        if known is not None:
            known.story.append(event)
            return known
        failure, view = self._evidence.get(sandbox), self._sandboxes.get(sandbox)
        cause, _, rest = detail.partition(":")
        if " " in cause.strip() or not rest:
            cause, rest = "lost", detail
        held = bool(event.run_id or (view and view.lease_id))
        incident = Incident(
            event.at, f"sandbox {sandbox}", failure.cause if failure else cause.strip(), rest.strip(), event.node,
            event.run_id, sandbox, verdict=OPEN if held else "replaced", touched=int(held), failure=failure,
        )  # fmt: skip
        if view is not None and view.evidence is not None:
            incident.detected_s = view.evidence.detected_after_s
        self._of_sandbox[sandbox] = incident
        return self._begin(incident, event)

    def _lease(self, event: EventView, word: str) -> None:
        if word in {"recovering", "lost"}:
            self._lease_lost(event, word)
        elif word == "expired":
            silent = Incident(
                event.at, f"lease {event.subject}", "expired", event.detail, event.node, event.run_id,
                verdict="taken back", touched=1,
            )  # fmt: skip
            self._begin(silent, event)
        elif word == "moving":
            self._of_lease.pop(event.subject, None)
        elif incident := self._of_lease.get(event.subject):
            self._end(incident, event, HEALED.get(event.kind, "rebound"))

    def _lease_lost(self, event: EventView, word: str) -> None:
        match = _SANDBOX.match(event.detail)
        why = event.detail[match.end() :] if match else event.detail
        incident = self._of_lease.get(event.subject) if word == "lost" else None
        if incident is None or (match and incident.sandbox != match[1] and word == "lost" and incident.verdict != OPEN):
            incident = self._sandbox(event, match[1] if match else event.subject, why)
        elif incident.story[-1] is not event:
            incident.story.append(event)
        incident.touched, incident.run_id = 1, incident.run_id or event.run_id
        self._of_lease[event.subject] = incident
        incident.verdict = "lost" if word == "lost" else OPEN
        down = self._of_subject.get(event.node)
        if down and (text.utc(event.at) - text.utc(down.at)).total_seconds() <= _NODE_WINDOW_S:
            down.touched += 1


def endings(found: Sequence[Incident]) -> dict[str, int]:
    """How many incidents ended how, in the order of :data:`VERDICTS`."""
    counts = dict.fromkeys(VERDICTS, 0)
    for incident in found:
        counts[incident.verdict] += 1
    return {verdict: n for verdict, n in counts.items() if n}
