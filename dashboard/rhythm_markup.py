"""The attention rhythm of an episode as escaped HTML: every token on a ground as strong as its WAAD or FAI.

Pure. Violet is WAAD, the local heads; blue is FAI, the global heads; what the environment said is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

from dashboard import text
from dashboard.palette import Tone
from rock.sdk import EpisodeRhythm, RhythmCoupling, RhythmView

Series = Literal["waad", "fai"]
SAYS: dict[Series, str] = {"waad": "WAAD: how far back local heads look", "fai": "FAI: how much later tokens look here"}
STRONGEST = 0.6  # share of the colour in the ground of the highest token: text stays readable on it


def shades(values: Sequence[float]) -> list[float]:
    """0 to 1 by rank, ties alike: attention is so uneven that a linear scale shows one token and hides the rest."""
    ordered = sorted(set(values))
    if len(ordered) < 2:
        return [0.0] * len(values)
    rank = {value: i / (len(ordered) - 1) for i, value in enumerate(ordered)}
    return [rank[value] for value in values]


def tokens(record: EpisodeRhythm, series: Series) -> str:
    """The episode's text, coloured by one of the two series."""
    shade = shades(record.waad if series == "waad" else record.fai)
    place = {position: i for i, position in enumerate(record.own)}
    parts = []
    for position, token in enumerate(record.tokens):
        i = place.get(position)
        if i is None:
            parts.append(f'<span class="rk-context">{escape(token)}</span>')
            continue
        marks = (" rk-preplan" if record.preplan[i] else "") + (" rk-anchor" if record.anchor[i] else "")
        parts.append(
            f'<span class="rk-own rk-{series}{marks}" style="--s:{STRONGEST * shade[i]:.0%}" '
            f'title="{escape(numbers(record, i))}">{escape(token)}</span>'
        )
    return f'<pre class="rk-rhythm">{"".join(parts)}</pre>'


def numbers(record: EpisodeRhythm, i: int) -> str:
    """What is known of token ``i`` of the response, in one line."""
    said = [
        f"WAAD {record.waad[i]:.3f}",
        f"Δ {record.change[i]:.3f}",
        f"FAI {record.fai[i]:.4f}",
        f"γ {record.gamma[i]:.2f}",
        f"entropy {record.entropy[i]:.3f}",
        *([f"advantage {record.advantage[i]:+.3f}"] if record.advantage else []),
        *(["preplan"] if record.preplan[i] else []),
        *(["anchor"] if record.anchor[i] else []),
    ]
    return " · ".join(said)


def legend() -> str:
    """What colours and marks mean."""
    scale = "".join(
        f'<li><span class="rk-own rk-{series}" style="--s:{STRONGEST * share:.0%}">&nbsp;{word}&nbsp;</span></li>'
        for series, words in (("waad", ("near", "far")), ("fai", ("little", "much")))
        for share, word in zip((0.1, 1.0), words, strict=True)
    )
    return (
        f'<ul class="rk-legend rk-rhythm-legend">{scale}<li><span class="rk-own rk-preplan">preplan token</span></li>'
        '<li><span class="rk-own rk-anchor">anchor</span></li><li><span class="rk-context">context</span></li></ul>'
        '<p class="rk-note">Violet: WAAD, blue: FAI, each by rank within the episode. Point at a token for its '
        "numbers.</p>"
    )


def added(couplings: Sequence[RhythmCoupling]) -> RhythmCoupling:
    """The sums of several episodes together."""
    return RhythmCoupling(**{n: sum(getattr(c, n) for c in couplings) for n in RhythmCoupling.model_fields})


def coupling_tiles(found: RhythmCoupling, note: str) -> list[tuple[str, str, str, Tone | None]]:
    """The two statistics of the paper, beside what it found: tiles for ``markup.tiles``."""
    entropy = following = text.NOTHING
    if found.peaks and found.entropy:
        entropy = f"{(found.peak_entropy / found.peaks) / (found.entropy / found.entropy_tokens) - 1:+.0%}"
    if found.expected:
        following = f"{found.followed / found.expected - 1:+.0%}"
    followed = f"{found.followed:,.0f} of {found.anchors:,.0f}" if found.anchors else text.NOTHING
    return [
        ("entropy at WAAD peaks", entropy, "against all tokens; the paper: +52%", None),
        ("FAI peaks after a WAAD peak", following, "against shuffled; the paper: +42%", None),
        ("FAI peaks that follow", followed, "at most three tokens later, or the same", None),
        ("tokens", f"{found.tokens:,.0f}", note, None),
    ]


def label(view: RhythmView) -> str:
    result = {True: "won", False: "lost", None: "result unknown"}[view.success]
    return f"step {view.step} · {result} · {view.task} · {view.episode_id}"


def heads(record: EpisodeRhythm) -> str:
    """Every head that was looked at, by its span."""
    rows = "".join(
        f"<tr><td>layer {h.layer}, head {h.head}</td><td>{h.span:.2f}</td>"
        f"<td>{escape(h.kind) or text.NOTHING}</td></tr>"
        for h in sorted(record.heads, key=lambda h: h.span)
    )
    return (
        '<table class="rk-table"><thead><tr><th>attention head</th><th>mean tokens looked back</th><th>counts as</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
