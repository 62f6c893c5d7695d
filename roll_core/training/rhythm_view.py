"""Attention rhythm of one episode for people: coloured text for a terminal, and one self-contained file of HTML.

Pure: a record, and maps if there are any, in; text out. Everything that a policy or an environment wrote is escaped.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from html import escape

from rich.style import Style
from rich.text import Text as RichText

from rock.sdk import EpisodeRhythm
from roll_core.algorithms.rhythm import Coupling

LOCAL = (0xE0, 0x8A, 0x1E)
"""Amber: WAAD, the local heads."""
GLOBAL = (0x3A, 0x63, 0xD8)
"""Blue: FAI, the global heads."""
_DARK = (0x14, 0x18, 0x20)


def shades(values: Sequence[float]) -> list[float]:
    """0 to 1 by rank, ties alike: attention is so uneven that a linear scale shows one token and hides the rest."""
    ordered = sorted(set(values))
    if len(ordered) < 2:
        return [0.0] * len(values)
    rank = {value: i / (len(ordered) - 1) for i, value in enumerate(ordered)}
    return [rank[value] for value in values]


def visible(token: str) -> str:
    return token.replace("\n", "⏎\n") if token.strip(" ") else token


def coloured(record: EpisodeRhythm, series: str) -> RichText:
    """The episode's text; what the policy sampled on a ground of ``waad`` or ``fai``. ``^`` stands before a preplan
    token, ``*`` before an anchor."""
    hue = LOCAL if series == "waad" else GLOBAL
    shade = dict(zip(record.own, shades(getattr(record, series)), strict=True))
    place = {position: i for i, position in enumerate(record.own)}
    text = RichText(overflow="fold")
    for position, token in enumerate(record.tokens):
        if position not in shade:
            text.append(visible(token), Style(dim=True))
            continue
        i = place[position]
        marks = ("^" if record.preplan[i] else "") + ("*" if record.anchor[i] else "")
        if marks:
            text.append(marks, Style(bold=True))
        red, green, blue = (round(d + (h - d) * shade[position]) for d, h in zip(_DARK, hue, strict=True))
        style = Style(color="white", bgcolor=f"rgb({red},{green},{blue})", underline=record.gamma[i] > 1)
        text.append(visible(token), style)
    return text


def sentences(found: Coupling) -> list[str]:
    """The coupling statistics, in words, beside the paper's."""
    said = [f"{found.tokens:,.0f} tokens, {found.anchors:,.0f} FAI peaks"]
    if found.entropy_gain is not None:
        mean = found.entropy / found.entropy_tokens
        said.append(f"entropy at WAAD peaks {found.entropy_gain:+.0%} over all tokens (mean {mean:.3f}; paper +52 %)")
    if found.following_gain is not None:
        said.append(
            f"FAI peaks that follow or coincide with a WAAD peak {found.followed / found.anchors:.0%}, "
            f"{found.following_gain:+.0%} over shuffled (paper +42 %)"
        )
    return said


# --- HTML ------------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1a1f27;--muted:#5d6675;--line:#d5dae2;
--local:224,138,30;--global:58,99,216}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--ink:#e7eaee;--muted:#9aa4b2;--line:#2b323c;--global:124,157,255}}
body{background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif;
max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.25rem}h2{font-size:1.05rem;margin:1.6rem 0 .3rem}p,figcaption,li{color:var(--muted);font-size:.88rem}
pre{font:13px/1.75 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
border:1px solid var(--line);border-radius:6px;padding:.7rem}
pre i{font-style:normal;color:var(--muted)}b{font-weight:inherit;border-radius:3px}
.p{outline:1.5px dashed rgb(var(--local))}.a{box-shadow:inset 0 -2px rgb(var(--global))}
.w{background:rgba(var(--local),var(--s))}.f{background:rgba(var(--global),var(--s))}
figure{display:inline-block;margin:.4rem 1rem .4rem 0;width:min(48%,30rem);vertical-align:top}
figure img{width:100%;aspect-ratio:1;image-rendering:pixelated;border:1px solid var(--line)}
table{border-collapse:collapse;font-size:.85rem}
td,th{border-bottom:1px solid var(--line);padding:.15rem .7rem;text-align:right}
@media(max-width:640px){figure{width:100%}}
"""


def html(record: EpisodeRhythm, maps: Sequence[Sequence[Sequence[float]]] | None, note: str = "") -> str:
    """``maps``: local and global, rows for the tokens of the response, columns for all tokens."""
    drawn = ""
    if maps is not None:
        words = ("Local heads: the sawtooth of chunks along the diagonal", "Global heads: columns are anchors")
        drawn = "<h2>Attention</h2>" + "".join(
            f'<figure><img alt="{escape(say)}" src="data:image/png;base64,{_png(grid, hue)}">'
            f"<figcaption>{escape(say)}. Rows: response tokens, first on top; columns: all tokens. Square root of the "
            f"attention.</figcaption></figure>"
            for grid, say, hue in zip(maps, words, (LOCAL, GLOBAL), strict=True)
        )
    result = {True: "won", False: "lost", None: "result unknown"}[record.success]
    heads = "".join(
        f"<tr><td>{h.layer}</td><td>{h.head}</td><td>{h.span:.2f}</td><td>{escape(h.kind)}</td></tr>"
        for h in record.heads
    )
    said = "".join(f"<li>{escape(s)}</li>" for s in sentences(Coupling(**record.coupling.model_dump())))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Attention rhythm of {escape(record.episode_id)}</title><style>{_STYLE}</style>"
        f"<h1>Attention rhythm of {escape(record.episode_id)}</h1><p>{escape(record.task)}, "
        f"step {record.step}, {result}, credit {escape(record.strategy)}. {escape(note)}</p><ul>{said}</ul>"
        f"<h2>WAAD: how far back the local heads look</h2>{_marked(record, 'waad')}"
        f"<h2>FAI: how much later tokens look here</h2>{_marked(record, 'fai')}"
        "<p>Stronger is higher, by rank. Dashed outline: preplan token. Underlined: anchor. Grey: what the environment "
        "said. Point at a token for its numbers.</p>"
        f"{drawn}<h2>Heads</h2><table><tr><th>layer</th><th>head</th><th>span</th><th></th></tr>{heads}</table></html>"
    )


def _marked(record: EpisodeRhythm, series: str) -> str:
    shade = shades(getattr(record, series))
    place = {position: i for i, position in enumerate(record.own)}
    parts = []
    for position, token in enumerate(record.tokens):
        i = place.get(position)
        if i is None:
            parts.append(f"<i>{escape(token)}</i>")
            continue
        classes = [series[0], *(["p"] if record.preplan[i] else []), *(["a"] if record.anchor[i] else [])]
        numbers = (
            f"WAAD {record.waad[i]:.3f} · Δ {record.change[i]:.3f} · FAI {record.fai[i]:.4f} · "
            f"γ {record.gamma[i]:.2f} · entropy {record.entropy[i]:.3f}"
        )
        numbers += f" · advantage {record.advantage[i]:+.3f}" if record.advantage else ""
        parts.append(
            f'<b class="{" ".join(classes)}" style="--s:{0.8 * shade[i]:.2f}" title="{numbers}">{escape(token)}</b>'
        )
    return f"<pre>{''.join(parts)}</pre>"


def _png(grid: Sequence[Sequence[float]], hue: tuple[int, int, int]) -> str:
    """A heat map from white to ``hue``, base64: 40 lines fewer than a plotting library, and as sharp."""
    top = max((v for row in grid for v in row), default=0.0) or 1.0
    lines = bytearray()
    for row in grid:
        lines.append(0)  # no filter
        for value in row:
            strength = math.sqrt(max(0.0, value) / top)
            lines += bytes(round(255 + (h - 255) * strength) for h in hue)
    header = struct.pack(">IIBBBBB", len(grid[0]) if grid else 1, max(1, len(grid)), 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(lines))), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()
