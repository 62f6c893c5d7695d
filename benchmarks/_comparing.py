"""Means over seeds with their intervals, the verdict whether one arm keeps up with another, and a picture of it.

All intervals are of 95 %. Over seeds they are Student's t on the seeds' values; a difference between two arms is taken
seed by seed, because both start from the same weights. With one seed only the evaluation's own noise is known, and the
interval is that of a difference of two shares.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from roll_core.training.metrics import Z_95, Rate

# Student's t at 97.5 %, by degrees of freedom; beyond the table the next smaller entry, which is a little too wide.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
      12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.0, 120: 1.98}  # fmt: skip

MATCHES, BEHIND, UNDECIDED = "matches", "falls behind", "undecided"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval; ``n`` seeds."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return {"mean": round(self.mean, 4), "low": round(self.low, 4), "high": round(self.high, 4), "n": self.n}


def student_t(degrees: int) -> float:
    return _T[max(d for d in _T if d <= degrees)]


def mean_of(values: Sequence[float]) -> Estimate:
    """Over seeds. Of a single one the interval is unbounded: nothing is known of how seeds differ."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def mean_rate(rates: Sequence[Rate]) -> Estimate:
    """Success over seeds; of a single seed the interval of the evaluation."""
    if len(rates) == 1:
        return Estimate(rates[0].rate, rates[0].low, rates[0].high, 1)
    return mean_of([rate.rate for rate in rates])


def difference(one: Sequence[Rate], other: Sequence[Rate]) -> Estimate:
    """``one`` − ``other``, seed by seed. Raises ValueError if they have not the same number of seeds."""
    pairs = list(zip(one, other, strict=True))
    if len(pairs) > 1:
        return mean_of([a.rate - b.rate for a, b in pairs])
    a, b = pairs[0]
    # Agresti and Caffo's: one success and one failure more on each side, or shares of 0 and 1 would look certain.
    shares = [((rate.rate * rate.n + 1) / (rate.n + 2), rate.n + 2) for rate in (a, b)]
    half = Z_95 * math.sqrt(sum(p * (1 - p) / n for p, n in shares))
    middle = shares[0][0] - shares[1][0]
    return Estimate(a.rate - b.rate, middle - half, middle + half, 1)


def verdict(gap: Estimate, margin: float) -> str:
    """Whether an arm keeps up with its reference, from the interval of (arm − reference).

    ``matches``: it is certain to be less than ``margin`` below. ``falls behind``: it is certain to be below, and not
    certain to be within the margin. ``undecided``: neither; more seeds would tell.
    """
    if gap.low > -margin:
        return MATCHES
    return BEHIND if gap.high < 0 else UNDECIDED


# --- the picture -----------------------------------------------------------------------------------------------------

_COLOURS = ("#4c6a92", "#d98032", "#5b9a68", "#a05195")
_LEFT, _RIGHT, _ROW, _TOP, _STEP = 150, 30, 46, 74, 11
_WIDTH = 760


def forest_svg(
    title: str, subtitle: str, series: Sequence[str], rows: Mapping[str, Sequence[Estimate | None]], base: float
) -> str:
    """One row a name, in it a point with its interval for each of ``series``. Shares from 0 to 1; ``base`` is drawn as
    a line. Text in the colour of its surroundings, so that it can be read on light and dark pages."""
    shown = [e for estimates in rows.values() for e in estimates if e is not None]
    low = math.floor(20 * max(0.0, min([base, *(max(0.0, e.low) for e in shown)]))) / 20
    high = math.ceil(20 * min(1.0, max([base, *(min(1.0, e.high) for e in shown)]))) / 20
    high = max(high, low + 0.05)

    def x(share: float) -> float:
        inside = min(max(share, low), high)
        return round(_LEFT + (inside - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    height = _TOP + _ROW * len(rows) + 34
    bottom = height - 30
    parts = [_text(16, 22, title, size=15, bold=True), _text(16, 40, subtitle, size=11)]
    for i, name in enumerate(series):
        left = _LEFT + 120 * i
        parts.append(f'<circle cx="{left}" cy="56" r="4" fill="{_COLOURS[i % len(_COLOURS)]}"/>')
        parts.append(_text(left + 9, 60, name, size=11))
    for tick in range(round(low * 20), round(high * 20) + 1):
        at = x(tick / 20)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{_TOP - 6}" y2="{bottom}" stroke="#8885" stroke-width="1"/>')
        parts.append(_text(at, height - 14, f"{5 * tick} %", size=11, anchor="middle"))
    parts.append(
        f'<line x1="{x(base)}" x2="{x(base)}" y1="{_TOP - 6}" y2="{bottom}" stroke="#888" stroke-dasharray="4 3"/>'
    )
    for row, (name, estimates) in enumerate(rows.items()):
        middle = _TOP + _ROW * row + _ROW / 2
        parts.append(_text(_LEFT - 12, middle + 4, name, size=12, anchor="end"))
        for i, estimate in enumerate(estimates):
            if estimate is not None:
                y = middle + _STEP * (i - (len(series) - 1) / 2)
                colour = _COLOURS[i % len(_COLOURS)]
                ends = f'x1="{x(estimate.low)}" x2="{x(estimate.high)}" y1="{y}" y2="{y}"'
                parts.append(f'<line {ends} stroke="{colour}" stroke-width="2"/>')
                parts.append(f'<circle cx="{x(estimate.mean)}" cy="{y}" r="4" fill="{colour}"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    style = 'font-family="system-ui, sans-serif" fill="#888"'
    return f"{head} {style}>\n" + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
