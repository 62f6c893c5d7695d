"""HTML of the morning page: incidents with their evidence a click away, latencies, what changed. Pure, all escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from html import escape
from urllib.parse import urlencode

from dashboard import text
from dashboard.incidents import VERDICTS, Incident
from dashboard.latencies import SLOWER_THAN_OTHERS, WHAT, Latency, Slow
from dashboard.markup import chip
from dashboard.palette import Tone
from dashboard.sentences import event_words
from rock.sdk import EventView

When = Callable[[datetime], str]


def incident_list(found: Sequence[Incident], when: When) -> str:
    """A row an incident: when, what, detected, recovered, episodes, verdict; a click unfolds evidence and story."""
    head = "".join(
        f"<span>{name}</span>" for name in ("when", "what", "detected in", "recovered in", "episodes", "verdict")
    )
    rows = "".join(_incident(incident, when) for incident in found)
    return f'<div class="rk-incidents"><div class="rk-incident-head">{head}</div>{rows}</div>'


def _incident(incident: Incident, when: When) -> str:
    tone, meaning = VERDICTS[incident.verdict]
    cells = (
        f'<span class="rk-note">{escape(when(incident.at))}</span>'
        f"<span>{chip(incident.cause, Tone.NEUTRAL)} <code>{escape(incident.what)}</code></span>"
        f'<span data-label="detected in">{text.duration(incident.detected_s)}</span>'
        f'<span data-label="recovered in">{text.duration(incident.recovered_s)}</span>'
        f'<span data-label="episodes">{incident.touched:,}</span>'
        f'<span title="{escape(meaning)}">{chip(incident.verdict, tone)}</span>'
    )
    return f'<details class="rk-incident"><summary>{cells}</summary>{_evidence(incident, meaning, when)}</details>'


def _evidence(incident: Incident, meaning: str, when: When) -> str:
    facts = [("verdict", f"{incident.verdict}: {meaning}"), ("detail", incident.detail or text.NOTHING)]
    if incident.node:
        facts.append(("node", incident.node))
    output = ""
    if incident.failure is not None:
        facts += [pair for pair in incident.failure.evidence if pair[0] != "cause"]
        if incident.failure.last_output:
            said = escape("\n".join(incident.failure.last_output))
            output = f'<div class="rk-label">last output</div><pre>{said}</pre>'
    elif incident.sandbox:
        facts.append(("evidence", f"no longer at hand; `rock logs {incident.sandbox}` may know more"))
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    story = "".join(
        f"<li><span class='rk-note'>{escape(when(e.at))}</span> {escape(event_words(e.kind))}"
        f"{f': {escape(e.detail)}' if e.detail else ''}</li>"
        for e in incident.story
    )
    link = ""
    if incident.sandbox and incident.run_id:
        query = urlencode({"run": incident.run_id, "find": incident.sandbox})
        link = f'<p><a href="episode?{escape(query)}" target="_self">Episodes of this sandbox</a></p>'
    return f'<div class="rk-evidence"><dl>{pairs}</dl>{output}<ol class="rk-story">{story}</ol>{link}</div>'


def latency_table(rows: Iterable[Latency]) -> str:
    """p50, p95 and p99 by environment; the p95 is held against the objective."""
    body = "".join(
        f"<tr><td>{escape(r.env)}</td><td>{escape(WHAT.get(r.what, r.what))}</td><td>{r.count:,}</td>"
        f"<td>{text.duration(r.p50_s)}</td><td>{text.duration(r.p95_s)}</td><td>{text.duration(r.p99_s)}</td>"
        f"<td>{text.duration(r.objective_s)}</td><td>{_met(r)}</td></tr>"
        for r in rows
    )
    head = "".join(f"<th>{n}</th>" for n in ("environment", "what", "count", "p50", "p95", "p99", "p95 at most", ""))
    return f'<table class="rk-table rk-latencies"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _met(row: Latency) -> str:
    if row.met is None:
        return ""
    return chip("met", Tone.GOOD) if row.met else chip("missed", Tone.VOID)


def slow_table(rows: Iterable[Slow]) -> str:
    body = "".join(
        f"<tr><td>{escape(r.pool)}</td><td>{escape(r.node)}</td><td>{text.duration(r.step_p50_s)}</td>"
        f"<td>{_times(r.times)}</td></tr>"
        for r in rows
    )
    head = "<th>image</th><th>node</th><th>median step</th><th>against other nodes</th>"
    return f'<table class="rk-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _times(times: float | None) -> str:
    if times is None:
        return '<span class="rk-note">the only one</span>'
    said = f"{times:.1f} ×"
    return chip(said, Tone.VOID) if times >= SLOWER_THAN_OTHERS else said


def change_list(
    facts: Sequence[tuple[str, str]], recipe: Sequence[tuple[str, str, str]], events: Sequence[EventView], when: When
) -> str:
    """Facts in a row, then the recipe's keys that differ, then what happened."""
    pairs = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    keys = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(before)}</td><td>→ {escape(after)}</td></tr>"
        for key, before, after in recipe
    )
    table = f'<table class="rk-table rk-changes"><tbody>{keys}</tbody></table>' if keys else ""
    happened = "".join(
        f"<li><span class='rk-note'>{escape(when(e.at))}</span> {escape(event_words(e.kind))} "
        f"<code>{escape(e.subject)}</code>{f': {escape(e.detail)}' if e.detail else ''}</li>"
        for e in events
    )
    story = f'<ol class="rk-story">{happened}</ol>' if happened else ""
    return f'<dl class="rk-facts">{pairs}</dl>{table}{story}'
