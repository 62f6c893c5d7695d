"""A run as one file that needs nothing else: sentence, curves, lost time, ledger, incidents, recipe.

Pure: snapshot in, HTML out.

Invariants: the file loads nothing from anywhere (the charts' library is inside); everything that came from the platform
is escaped; every number names its window, and the report says when it was made and from what.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io

from dashboard import figures, frames, markup, palette, text, work_figures, worktime
from dashboard.frames import Series
from dashboard.sentences import ACTIVE, INCIDENTS, run_facts, run_sentence
from dashboard.snapshots import RunSnapshot
from dashboard.tiles import outcome_window, run_tiles
from rock.sdk import EventView

STYLE = (Path(__file__).parent / "style.css").read_text()
PAGE_STYLE = """
body { margin: 0 auto; max-width: 1100px; padding: 1.5rem; background: var(--rk-background); color: var(--rk-text);
  font-family: system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.3rem; } .rk-report > * { margin-bottom: .9rem; }
pre.rk-recipe { background: var(--rk-raised); padding: .8rem; border-radius: .4rem; font-size: .78rem;
  overflow-x: auto; }
.rk-words td { text-align: left !important; overflow-wrap: anywhere; }
@media print { .rk-report > * { break-inside: avoid; } pre.rk-recipe { break-inside: auto; white-space: pre-wrap; } }
"""
MAX_INCIDENTS = 200
LEDGER_NOTE = "the whole run, from the platform's ledger"
Chart = Callable[[str, str, go.Figure], None]
"""Draws one under its title and note."""


def report_html(snap: RunSnapshot, now: datetime, source: str) -> str:
    """The whole document. ``source``: where the numbers come from, as a person would name it."""
    facts = run_facts(snap.run, snap.metrics, snap.ledger, snap.events, now)
    made = f"made {text.utc(now):%Y-%m-%d %H:%M} UTC from {source} \u00b7 {snap.run.id}"
    parts = [
        markup.banner(run_sentence(snap.run, facts), made),
        run_tiles(facts, active=snap.run.status in ACTIVE),
        *_charts(snap),
        markup.ledger_table(frames.accounts(snap.ledger), snap.ledger.dispatched),
        markup.heading("Incidents", f"the last {len(snap.events)} events of the run were looked at"),
        _incidents([e for e in snap.events if e.kind in INCIDENTS or e.kind in frames.HEALED]),
        markup.heading("Recipe", "as it was started"),
        f'<pre class="rk-recipe">{escape(json.dumps(snap.run.recipe, indent=1))}</pre>',
    ]
    title = escape(f"{snap.run.name} \u00b7 ROCK & ROLL")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{palette.variables('light')}{STYLE}{PAGE_STYLE}</style></head>"
        f'<body><main class="rk-report"><h1>{escape(snap.run.name)}</h1>{"".join(parts)}</main></body></html>\n'
    )


def _charts(snap: RunSnapshot) -> list[str]:
    metrics = snap.metrics
    parts: list[str] = []
    drawn: list[go.Figure] = []

    def chart(title: str, note: str, figure: go.Figure) -> None:
        parts.append(markup.heading(title, note))
        parts.append(_embedded(figure, first=not drawn))
        drawn.append(figure)

    if measured := frames.before_after(snap.run.summary):
        counts = " and ".join(f"{i.n:,}" for i in measured)
        chart(
            "Before and after",
            f"held-out tasks, 95% intervals, n = {counts}",
            figures.interval_figure(measured, "light"),
        )
    _curves(metrics, parts, chart)
    _losses(snap, chart)
    if not snap.ledger.dispatched:
        parts.append(markup.heading("Where every episode went", LEDGER_NOTE))
    return parts


def _curves(metrics: pd.DataFrame, parts: list[str], chart: Chart) -> None:
    if metrics.empty:
        parts.append(markup.empty("No step was reported", "The run ended, or is, before its first learner step."))
        return
    chart("Success, reward and void rate", outcome_window(len(metrics)), figures.outcome_figure(metrics, "light"))
    if Series.TOKENS_PER_S.column(metrics):
        chart("Tokens per second", "generated, as the trainer reports them", figures.tokens_figure(metrics, "light"))
    if Series.STALENESS_MEAN.column(metrics):
        note = "policy versions between sampling and training"
        chart("Staleness", note, figures.staleness_figure(metrics, "light"))


def _losses(snap: RunSnapshot, chart: Chart) -> None:
    """Of the workers' time, and of the episodes."""
    spent = worktime.spent(snap.metrics, snap.run.created_at)
    if spent is not None and spent.parts:
        chart("Where the time went", spent.window, work_figures.waterfall_figure(spent, None, "light"))
    if snap.ledger.dispatched:
        flows = work_figures.sankey_figure(frames.accounts(snap.ledger), snap.ledger.dispatched, "light")
        chart("Where every episode went", LEDGER_NOTE, flows)


def _embedded(figure: go.Figure, *, first: bool) -> str:
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=first, config=figures.CONFIG))


def _incidents(events: list[EventView]) -> str:
    if not events:
        return markup.empty("None", "No sandbox failed, no lease expired, no node went down while the run was at work.")
    ordered = sorted(events, key=lambda e: (text.utc(e.at), e.id), reverse=True)
    rows = "".join(
        f"<tr><td>{text.utc(e.at):%m-%d %H:%M:%S}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in (e.kind, e.subject, e.detail, e.node))
        + "</tr>"
        for e in ordered[:MAX_INCIDENTS]
    )
    more = f"<p class='rk-note'>and {len(ordered) - MAX_INCIDENTS:,} earlier ones</p>" * (len(ordered) > MAX_INCIDENTS)
    head = "".join(f"<th>{name}</th>" for name in ("time (UTC)", "what", "about", "detail", "node"))
    return f'<table class="rk-table rk-words"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}'
