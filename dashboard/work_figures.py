"""Charts of how a run works: time lost, ledger, roofline, mismatch, several runs compared, incidents in time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import pandas as pd
import plotly.graph_objects as go

from dashboard import text
from dashboard.figures import base, faded, line, whole
from dashboard.frames import Account, smooth, thin
from dashboard.incidents import VERDICTS, Incident
from dashboard.palette import LEDGER_TONES, RUN_COLOURS, SURFACES, Theme, Tone, colour
from dashboard.worktime import Price, Spent, worker_hours
from rock.sdk import LedgerState

_ROW_PX = 34
_ROOM = timedelta(minutes=1)  # beside the first and the last mark, so that two of one second are no whole axis
_ENDED_WITH_RESULT = (LedgerState.TRAINED, LedgerState.FILTERED, LedgerState.STALE, LedgerState.EVALUATED)


def waterfall_figure(spent: Spent, price: Price | None, theme: Theme) -> go.Figure:
    """From all that was paid for down to what was useful: each loss begins where the one before it ends."""
    figure = base(theme, 70 + _ROW_PX * (len(spent.parts) + 1), x_title="share of the workers' time")
    parts = [p for p in spent.parts if p.tone is not Tone.GOOD] + [p for p in spent.parts if p.tone is Tone.GOOD]
    left = 1.0
    for part in parts:
        start = left - part.share if part.tone is not Tone.GOOD else 0.0
        cost = f" · {price.of(part.worker_s)}" if price else ""
        said = f"{text.percent(part.share)} · {_short_hours(part.worker_s)}{cost}"
        figure.add_bar(
            y=[part.name],
            x=[part.share],
            base=[start],
            orientation="h",
            marker={"color": colour(part.tone, theme), "opacity": 1.0 if part.tone is Tone.GOOD else 0.8},
            hovertemplate=f"<b>{part.name}</b>: {part.meaning}<br>{worker_hours(part.worker_s)}{cost}<extra></extra>",
            showlegend=False,
        )
        # Beside the bar, on the side where there is room: a text inside a thin bar would be turned or cut.
        right = start + part.share <= 0.55
        figure.add_annotation(
            x=start + part.share if right else start,
            y=part.name,
            text=f"<b>{said}</b>" if part.tone is Tone.GOOD else said,
            showarrow=False,
            xanchor="left" if right else "right",
            xshift=6 if right else -6,
            font={"size": 12, "color": SURFACES[theme]["text" if part.tone is Tone.GOOD else "muted"]},
        )
        if start < 0.3 and not right:  # a bar over nearly all of the width holds its own text
            figure.layout.annotations[-1].update(
                x=start + part.share, xanchor="right", font={"size": 12, "color": SURFACES[theme]["background"]}
            )
        left -= part.share if part.tone is not Tone.GOOD else 0.0
    figure.update_layout(hovermode="closest", bargap=0.35, margin={"l": 8, "r": 12, "t": 8, "b": 8})
    figure.update_xaxes(range=[0, 1.005], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1], showgrid=True)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _short_hours(worker_s: float) -> str:
    return f"{worker_s / 3600:,.1f} h" if worker_s >= 3600 else f"{worker_s / 60:,.1f} min"


def sankey_figure(accounts: Sequence[Account], dispatched: int, theme: Theme, height: int = 280) -> go.Figure:
    """Dispatched episodes on their way to where they ended; accounts nobody is in are left out."""
    there = [a for a in accounts if a.episodes > 0]
    ended = sum(a.episodes for a in there if a.state in _ENDED_WITH_RESULT)
    labels, tints = [f"dispatched {dispatched:,}"], [colour(Tone.POLICY, theme)]
    source, target, value, link = [], [], [], []

    def flow(start: int, name: str, n: int, tint: str) -> int:
        labels.append(f"{name} {n:,}")
        tints.append(tint)
        source.append(start)
        target.append(len(labels) - 1)
        value.append(n)
        link.append(faded(tint, 0.35))
        return len(labels) - 1

    result = flow(0, "with a result", ended, colour(Tone.NEUTRAL, theme)) if ended else 0
    for account in there:
        start = result if account.state in _ENDED_WITH_RESULT else 0
        flow(start, account.state.value.replace("_", " "), account.episodes, colour(LEDGER_TONES[account.state], theme))
    figure = base(theme, height)
    figure.add_sankey(
        node={"label": labels, "color": tints, "pad": 16, "thickness": 12, "line": {"width": 0}},
        link={"source": source, "target": target, "value": value, "color": link},
        textfont={"color": SURFACES[theme]["text"], "size": 12, "shadow": "none"},
        valueformat=",d",
        valuesuffix=" episodes",
        orientation="h",
    )
    figure.update_layout(margin={"l": 4, "r": 4, "t": 8, "b": 8}, hovermode="closest")
    return figure


def roofline_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """η: the best these workers could do over what a step took; and the bubble, the share of their time without use."""
    figure = base(theme, height)
    for column, name, tone, dash in (
        ("roofline/efficiency", "η = T*/T", Tone.GOOD, "solid"),
        ("bubble/total", "bubble", Tone.VOID, "solid"),
        ("bubble/environment", "of it environment", Tone.ASIDE, "dot"),
        ("bubble/tail", "of it tail", Tone.NEUTRAL, "dot"),
    ):
        if column in metrics.columns:
            line(figure, metrics[column].dropna(), name, colour(tone, theme), dash=dash, hover="%{y:.1%}")
    figure.update_yaxes(range=[0, 1.05], tickformat=".0%", dtick=0.25)
    whole(figure, metrics)
    return figure


def step_time_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """Seconds of a step beside T*, the least that these workers would need for its tokens."""
    figure = base(theme, height)
    for column, name, tone, dash in (
        ("time/step_s", "a step took", Tone.POLICY, "solid"),
        ("roofline/ideal_step_s", "T*, at best", Tone.GOOD, "dot"),
        ("time/batch_wait_s", "waiting for its batch", Tone.VOID, "dot"),
    ):
        if column in metrics.columns:
            line(figure, metrics[column].dropna(), name, colour(tone, theme), dash=dash, hover="%{y:.2f} s")
    figure.update_yaxes(rangemode="tozero", ticksuffix=" s")
    whole(figure, metrics)
    return figure


def mismatch_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """KL of engine and learner over the same tokens (k3), by their age where that is told."""
    figure = base(theme, height)
    names = [("mismatch/k3", "all tokens", Tone.POLICY, "solid"), ("mismatch/k3_at_0", "fresh", Tone.GOOD, "dot")]
    names += [(f"mismatch/k3_at_{age}", f"{age} behind", Tone.ASIDE, "dot") for age in ("1", "2")]
    for column, name, tone, dash in names:
        if column in metrics.columns:
            line(figure, metrics[column].dropna(), name, colour(tone, theme), dash=dash, hover="%{y:.2e}")
    figure.update_yaxes(rangemode="tozero", exponentformat="e")
    whole(figure, metrics)
    return figure


def weighting_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """Effective sample size of the importance weights, and the share of tokens a clip or cap took effect on."""
    figure = base(theme, height)
    for column, name, tone in (
        ("mismatch/ess", "effective sample size", Tone.POLICY),
        ("mismatch/clipped", "clipped", Tone.VOID),
    ):
        if column in metrics.columns:
            line(figure, metrics[column].dropna(), name, colour(tone, theme), hover="%{y:.1%}")
    figure.update_yaxes(range=[0, 1.05], tickformat=".0%", dtick=0.25)
    whole(figure, metrics)
    return figure


def comparison_figure(series: Mapping[str, pd.Series], steps: int, theme: Theme, height: int = 380) -> go.Figure:
    """One metric of several runs over each other. ``steps``: how many a running mean is taken over; 1: none."""
    figure = base(theme, height)
    colours = RUN_COLOURS[theme]
    for number, (name, values) in enumerate(series.items()):
        tint = colours[number % len(colours)]
        raw, _ = thin(values)
        if steps > 1 and len(raw) > 1:
            figure.add_scatter(
                x=raw.index, y=raw, mode="lines", line={"color": faded(tint, 0.22), "width": 1},
                legendgroup=name, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
        drawn, _ = thin(smooth(values, steps))
        figure.add_scatter(
            x=drawn.index,
            y=drawn,
            name=name,
            mode="lines" if len(drawn) > 1 else "markers",
            line={"color": tint, "width": 2.2, "dash": "solid" if number < len(colours) else "dot"},
            legendgroup=name,
            hovertemplate="%{y:.4g}",
        )
    return figure


def incident_figure(found: Sequence[Incident], theme: Theme, height: int = 210) -> go.Figure:
    """When it happened: one mark an incident, in a row for its cause, in the colour of its verdict."""
    figure = base(theme, height, x_title="time (UTC)")
    by_verdict: dict[str, list[Incident]] = {}
    for incident in found:
        by_verdict.setdefault(incident.verdict, []).append(incident)
    for verdict, (tone, meaning) in VERDICTS.items():
        some = by_verdict.get(verdict, [])
        if not some:
            continue
        figure.add_scatter(
            x=[text.utc(i.at) for i in some],
            y=[i.cause for i in some],
            name=verdict,
            mode="markers",
            marker={
                "color": colour(tone, theme),
                "size": [11 + min(9, 3 * i.touched) for i in some],
                "symbol": "circle" if tone is Tone.GOOD else "diamond",
                "line": {"color": SURFACES[theme]["background"], "width": 1},
            },
            customdata=[[i.what, text.duration(i.recovered_s)] for i in some],
            hovertemplate=f"%{{customdata[0]}}: {meaning}; recovered in %{{customdata[1]}}<extra></extra>",
        )
    figure.update_layout(
        showlegend=True, hovermode="closest", height=max(height, 110 + _ROW_PX * len({i.cause for i in found}))
    )
    times = [text.utc(i.at) for i in found]
    if times:
        room = max(_ROOM, (max(times) - min(times)) / 20)
        figure.update_xaxes(range=[min(times) - room, max(times) + room])
    figure.update_xaxes(rangemode="normal", type="date", showgrid=True)
    figure.update_yaxes(type="category")
    return figure
