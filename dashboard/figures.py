"""Charts. Pure: frames in, Plotly figures out; colours by meaning, legible on a light and a dark page.

Every line keeps its meaning's colour on every chart. Where there are many points the raw line is faint and its mean
over the last ``NOW_STEPS`` steps is drawn over it; hover always gives the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboard import text
from dashboard.frames import NOW_STEPS, Interval, Series, smooth, thin
from dashboard.palette import FONT, SURFACES, Theme, Tone, colour

SMOOTH_FROM = 3 * NOW_STEPS  # fewer points are drawn as they are
CONFIG = {"displayModeBar": False, "scrollZoom": False, "responsive": True}


def faded(hex_colour: str, alpha: float) -> str:
    r, g, b = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def base(theme: Theme, height: int, *, x_title: str = "step") -> go.Figure:
    surface = SURFACES[theme]
    figure = go.Figure()
    axis = {
        "gridcolor": surface["line"],
        "zeroline": False,
        "linecolor": surface["line"],
        "tickfont": {"size": 12, "color": surface["muted"]},
        "title": {"font": {"size": 12, "color": surface["muted"]}, "standoff": 8},
        "automargin": True,
        "fixedrange": False,
    }
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
        font={"family": FONT, "size": 13, "color": surface["text"]},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified",
        hoverlabel={"bgcolor": surface["raised"], "bordercolor": surface["line"], "font": {"color": surface["text"]}},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}, "title": {"text": ""}},
        uirevision="keep",  # a zoom survives the next refresh
        dragmode="zoom",
    )
    figure.update_xaxes(**axis, showgrid=False, rangemode="tozero")
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(**axis)
    return figure


def whole(figure: go.Figure, metrics: pd.DataFrame) -> None:
    """The step axis from 0 to the last step of the run, the same on every chart, so that they can be compared."""
    if len(metrics):
        figure.update_xaxes(range=[0, max(1, int(metrics.index.max())) * 1.01])


def line(figure: go.Figure, series: pd.Series, name: str, tint: str, *, dash: str = "solid", hover: str = "") -> None:
    """A line; with enough points, the raw one faint and its running mean on top."""
    if series.empty:
        return
    smooth_it = len(series) >= SMOOTH_FROM
    raw, _ = thin(series)
    if smooth_it:
        figure.add_scatter(
            x=raw.index,
            y=raw,
            mode="lines",
            line={"color": faded(tint, 0.28), "width": 1},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    drawn, _ = thin(smooth(series)) if smooth_it else (raw, 1)
    figure.add_scatter(
        x=drawn.index,
        y=drawn,
        name=name,
        mode="lines" if len(drawn) > 1 else "markers",
        line={"color": tint, "width": 2.2, "dash": dash},
        marker={"color": tint, "size": 7},
        legendgroup=name,
        hovertemplate=hover or "%{y:.3g}",
    )


def outcome_figure(metrics: pd.DataFrame, theme: Theme, height: int = 340) -> go.Figure:
    """Success, reward and void rate on one axis: a curve that rises while the void rate does is not learning."""
    figure = base(theme, height)
    reward = Series.REWARD.of(metrics)
    success = Series.SUCCESS.of(metrics)
    line(figure, success, "success rate", colour(Tone.GOOD, theme), hover="%{y:.1%}")
    if not _same(reward, success):
        line(figure, reward, "mean reward", colour(Tone.POLICY, theme), dash="dot", hover="%{y:.3f}")
    line(figure, Series.VOID_RATE.of(metrics), "void rate", colour(Tone.VOID, theme), hover="%{y:.1%}")
    evaluated = Series.EVAL_SUCCESS.of(metrics)
    if len(evaluated):
        figure.add_scatter(
            x=evaluated.index,
            y=evaluated,
            name="held-out success",
            mode="markers+lines",
            marker={"color": colour(Tone.ASIDE, theme), "size": 9, "symbol": "diamond"},
            line={"color": faded(colour(Tone.ASIDE, theme), 0.5), "dash": "dot", "width": 1.5},
            error_y=_interval_bars(metrics, evaluated),
            hovertemplate="%{y:.1%}",
        )
    bounded = reward.empty or _same(reward, success) or (reward.min() >= 0 and reward.max() <= 1)
    whole(figure, metrics)
    if bounded:
        figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%", dtick=0.25)
    return figure


def _interval_bars(metrics: pd.DataFrame, evaluated: pd.Series) -> dict[str, object]:
    """The 95 % intervals of the evaluations, if they were reported."""
    low, high = Series.EVAL_LOW.of(metrics), Series.EVAL_HIGH.of(metrics)
    if low.empty or high.empty:
        return {"visible": False}
    above = (high.reindex(evaluated.index) - evaluated).fillna(0)
    below = (evaluated - low.reindex(evaluated.index)).fillna(0)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5, "width": 4}


def _same(a: pd.Series, b: pd.Series) -> bool:
    """Whether two series say the same; a success-only reward need not be drawn twice."""
    return len(a) == len(b) > 0 and bool(((a - b).abs() < 1e-9).all())


def tokens_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    figure = base(theme, height)
    line(figure, Series.TOKENS_PER_S.of(metrics), "tokens/s", colour(Tone.POLICY, theme), hover="%{y:,.0f}")
    figure.update_yaxes(rangemode="tozero")
    whole(figure, metrics)
    return figure


def staleness_figure(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """How many versions behind the learner the trained episodes were at their start, and their tokens when sampled."""
    figure = base(theme, height)
    line(figure, Series.STALENESS_MEAN.of(metrics), "mean", colour(Tone.ASIDE, theme), hover="%{y:.2f}")
    tokens = Series.STALENESS_TOKENS.of(metrics)
    line(figure, tokens, "mean of the tokens", colour(Tone.POLICY, theme), dash="dot", hover="%{y:.2f}")
    worst, _ = thin(Series.STALENESS_MAX.of(metrics))
    if len(worst):
        figure.add_scatter(
            x=worst.index,
            y=worst,
            name="max",
            mode="markers",
            marker={"color": colour(Tone.NEUTRAL, theme), "size": 4, "opacity": 0.75},
            hovertemplate="%{y:.0f}",
        )
    figure.update_yaxes(rangemode="tozero")
    whole(figure, metrics)
    return figure


STALENESS_BUCKETS = (
    (Series.STALENESS_AT_0, "fresh"),
    (Series.STALENESS_AT_1, "1 behind"),
    (Series.STALENESS_AT_2, "2 behind"),
    (Series.STALENESS_AT_3, "3 behind"),
    (Series.STALENESS_AT_4_UP, "4 or more"),
)


def staleness_histogram(metrics: pd.DataFrame, theme: Theme, height: int = 220) -> go.Figure:
    """Of what age the samples of each batch were: shares that add up to 1, the darker the older."""
    figure = base(theme, height)
    for number, (series, name) in enumerate(STALENESS_BUCKETS):
        share = series.of(metrics)
        if share.empty or not share.any():
            continue
        drawn, _ = thin(smooth(share)) if len(share) >= SMOOTH_FROM else thin(share)
        figure.add_scatter(
            x=drawn.index,
            y=drawn,
            name=name,
            mode="lines" if len(drawn) > 1 else "markers",
            stackgroup="share",
            line={"width": 0.5, "color": colour(Tone.ASIDE, theme)},
            fillcolor=faded(colour(Tone.ASIDE, theme), 0.15 + 0.2 * number),
            hovertemplate="%{y:.0%}",
        )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", dtick=0.25)
    whole(figure, metrics)
    return figure


def metric_figure(metrics: pd.DataFrame, name: str, theme: Theme, height: int = 180) -> go.Figure:
    """One metric under its own name."""
    figure = base(theme, height)
    line(figure, metrics[name].dropna(), name, colour(Tone.NEUTRAL, theme))
    surface = SURFACES[theme]
    figure.update_layout(
        showlegend=False,
        title={
            "text": name.partition("/")[2].replace("_", " ") or name,
            "font": {"size": 13, "color": surface["text"], "weight": 500},
            "x": 0,
            "xref": "container",
            "y": 0.98,
            "yanchor": "top",
            "pad": {"l": 4},
        },
    )
    figure.update_xaxes(title_text="")
    whole(figure, metrics)
    return figure


def interval_figure(intervals: Sequence[Interval], theme: Theme, height: int = 190) -> go.Figure:
    """Rates with their 95 % intervals, one row each, on the whole scale from 0 to 100 %."""
    figure = base(theme, height, x_title="success on held-out games")
    rows = list(intervals)[::-1]
    tints = [colour(Tone.GOOD if i.label.startswith("after") else Tone.NEUTRAL, theme) for i in rows]
    for interval, tint in zip(rows, tints, strict=True):
        figure.add_scatter(
            x=[interval.low, interval.high],
            y=[interval.label] * 2,
            mode="lines",
            line={"color": faded(tint, 0.45), "width": 10},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[interval.rate],
            y=[interval.label],
            mode="markers+text",
            marker={"color": tint, "size": 15, "line": {"color": SURFACES[theme]["background"], "width": 2}},
            text=[f"<b>{text.percent(interval.rate)}</b>"],
            textposition="top center",
            textfont={"size": 15, "color": tint},
            hovertemplate=(
                f"{text.percent(interval.rate, 1)}, 95% interval {text.percent(interval.low, 1)} to "
                f"{text.percent(interval.high, 1)}, {text.plural(interval.n, 'game')}<extra></extra>"
            ),
            showlegend=False,
        )
    figure.update_layout(hovermode="closest", margin={"l": 8, "r": 12, "t": 14, "b": 8})
    figure.update_xaxes(range=[-0.005, 1.01], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1], showgrid=True)
    figure.update_yaxes(showgrid=False, range=[-0.5, len(rows) - 0.25], tickfont={"size": 13})
    return figure


def turn_figure(turns: pd.DataFrame, theme: Theme, height: int = 190) -> go.Figure:
    """Where an episode's time went, turn by turn."""
    figure = base(theme, height, x_title="turn")
    for column, name, tone in (
        ("generate_s", "model generates", Tone.POLICY),
        ("env_s", "environment steps", Tone.ASIDE),
    ):
        figure.add_bar(
            x=turns["turn"],
            y=turns[column],
            name=name,
            marker={"color": colour(tone, theme)},
            hovertemplate="%{y:.3f} s",
        )
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(rangemode="normal", dtick=1 if len(turns) <= 20 else 5)
    figure.update_yaxes(ticksuffix=" s")
    return figure


def logprob_figure(turns: pd.DataFrame, theme: Theme, height: int = 190) -> go.Figure:
    """Mean log-probability per token of each turn: how sure the policy was of what it said."""
    figure = base(theme, height, x_title="turn")
    figure.add_scatter(
        x=turns["turn"],
        y=turns["mean_logprob"],
        name="mean log-prob per token",
        mode="lines+markers",
        line={"color": colour(Tone.POLICY, theme), "width": 2},
        marker={"size": 5},
        hovertemplate="%{y:.3f}",
        showlegend=True,
    )
    figure.update_xaxes(rangemode="normal", dtick=1 if len(turns) <= 20 else 5)
    figure.update_yaxes(range=[min(-0.1, float(turns["mean_logprob"].min()) * 1.1), 0])
    return figure
