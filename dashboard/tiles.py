"""What the page and the report say of a run in numbers: the tiles, and what the lines of its chart are. Pure."""

from __future__ import annotations

from dashboard import figures, markup, text
from dashboard.frames import MAX_POINTS, NOW_STEPS
from dashboard.palette import Tone
from dashboard.sentences import PACE_STEPS, VOID_WORRIES, RunFacts


def run_tiles(facts: RunFacts, *, active: bool) -> str:
    window = f"mean of the last {NOW_STEPS} steps"
    worried = facts.void_rate is not None and facts.void_rate > VOID_WORRIES
    total = f" of {facts.total_steps:,}" if facts.total_steps else ""
    return markup.tiles(
        [
            ("step", f"{facts.step:,}", f"{total.strip() or 'no end set'}, {text.duration(facts.step_s)} each", None),
            ("success", text.percent(facts.success), window, Tone.GOOD if facts.success is not None else None),
            ("reward", text.number(facts.reward), window, None),
            (
                "void",
                text.percent(facts.void_rate, 1),
                f"{facts.voids:,} of {text.plural(facts.episodes, 'episode')}",
                Tone.VOID if worried else None,
            ),
            ("tokens/s", text.number(facts.tokens_per_s), window, None),
            ("staleness", text.number(facts.staleness, 2), f"versions, max {text.number(facts.staleness_max)}", None),
            ("time left", text.duration(facts.left_s), f"from the last {PACE_STEPS} steps", None)
            if facts.left_s is not None
            else ("took so far" if active else "took", text.duration(facts.took_s), "from its creation on", None),
        ]
    )


def outcome_window(points: int) -> str:
    """What the lines of a chart with this many points are."""
    parts = ["training episodes of each step"]
    if points >= figures.SMOOTH_FROM:
        parts.append(f"bold: mean of {NOW_STEPS} steps")
    if points > MAX_POINTS:
        parts.append(f"one point is the mean of {-(-points // MAX_POINTS)} steps")
    return "; ".join(parts)
