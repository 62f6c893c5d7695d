"""One visual language: colours by meaning, for a light and a dark page.

A colour is never chosen where it is used: code names what a thing *means* (``Tone``), and this module says how that
looks. Green is success and nothing else; amber is *void* (broken, not the policy's doing); red asks for somebody's
attention; blue is the policy at work; greys carry no judgement.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from rock.domain.nodes import NodeStanding
from rock.sdk import LedgerState, SandboxState

Theme = Literal["light", "dark"]


class Tone(StrEnum):
    GOOD = "good"
    VOID = "void"
    BAD = "bad"
    POLICY = "policy"
    ASIDE = "aside"  # a second thing at work, neither good nor bad: evaluation, age of weights
    NEUTRAL = "neutral"
    FAINT = "faint"


COLOURS: dict[Theme, dict[Tone, str]] = {
    "light": {
        Tone.GOOD: "#1a8a4a",
        Tone.VOID: "#c27803",
        Tone.BAD: "#cf3a35",
        Tone.POLICY: "#3a63d8",
        Tone.ASIDE: "#7b57c9",
        Tone.NEUTRAL: "#667080",
        Tone.FAINT: "#b4bcc8",
    },
    "dark": {
        Tone.GOOD: "#3ecf7c",
        Tone.VOID: "#f0b03f",
        Tone.BAD: "#f4736d",
        Tone.POLICY: "#7c9dff",
        Tone.ASIDE: "#b497f5",
        Tone.NEUTRAL: "#98a3b3",
        Tone.FAINT: "#4d5765",
    },
}

SURFACES: dict[Theme, dict[str, str]] = {
    "light": {"background": "#ffffff", "raised": "#f5f6f8", "text": "#1a1f27", "muted": "#5d6675", "line": "#e2e5ea"},
    "dark": {"background": "#0f1318", "raised": "#181d24", "text": "#e7eaee", "muted": "#9aa4b2", "line": "#2b323c"},
}

SANDBOX_TONES: dict[SandboxState, Tone] = {
    SandboxState.REQUESTED: Tone.FAINT,
    SandboxState.STARTING: Tone.NEUTRAL,
    SandboxState.READY: Tone.GOOD,
    SandboxState.LEASED: Tone.POLICY,
    SandboxState.SUSPECT: Tone.VOID,
    SandboxState.RELEASED: Tone.FAINT,
    SandboxState.FAILED: Tone.BAD,
    SandboxState.GONE: Tone.FAINT,
}

STANDING_TONES: dict[NodeStanding, Tone] = {
    NodeStanding.UP: Tone.GOOD,
    NodeStanding.SUSPECT: Tone.VOID,
    NodeStanding.DEAD: Tone.BAD,
    NodeStanding.EJECTED: Tone.VOID,
    NodeStanding.CORDONED: Tone.NEUTRAL,
    NodeStanding.DRAINING: Tone.NEUTRAL,
}

LEDGER_TONES: dict[LedgerState, Tone] = {
    LedgerState.TRAINED: Tone.GOOD,
    LedgerState.FILTERED: Tone.NEUTRAL,
    LedgerState.STALE: Tone.ASIDE,
    LedgerState.VOID: Tone.VOID,
    LedgerState.CANCELLED: Tone.FAINT,
    LedgerState.EVALUATED: Tone.ASIDE,
    LedgerState.IN_FLIGHT: Tone.POLICY,
}

OUTCOME_TONES: dict[str, Tone] = {
    "completed": Tone.GOOD,
    "truncated": Tone.NEUTRAL,
    "void": Tone.VOID,
    "cancelled": Tone.FAINT,
}

RUN_COLOURS: dict[Theme, tuple[str, ...]] = {
    "light": ("#3a63d8", "#b3509b", "#0f8f8f", "#8a6d3b", "#5d6675", "#7b57c9"),
    "dark": ("#7b9bff", "#e38fce", "#4cc9c9", "#cfae74", "#9aa4b2", "#b39af0"),
}
"""For runs side by side, which mean neither good nor bad: no green, amber or red among them."""

FONT = '"Source Sans", "Source Sans 3", system-ui, -apple-system, "Segoe UI", sans-serif'
MONO = 'ui-monospace, "Source Code Pro", SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def colour(tone: Tone, theme: Theme) -> str:
    return COLOURS[theme][tone]


def streamlit_theme() -> dict[str, str]:
    """Streamlit's own options for both themes, as ``option → value``; the visitor's system chooses between them."""
    options: dict[str, str] = {"theme.baseRadius": "0.4rem"}
    for theme, surface in SURFACES.items():
        tones = COLOURS[theme]
        for option, value in {
            "primaryColor": tones[Tone.POLICY],
            "backgroundColor": surface["background"],
            "secondaryBackgroundColor": surface["raised"],
            "textColor": surface["text"],
            "borderColor": surface["line"],
            "dataframeBorderColor": surface["line"],
            "greenColor": tones[Tone.GOOD],
            "orangeColor": tones[Tone.VOID],
            "redColor": tones[Tone.BAD],
            "blueColor": tones[Tone.POLICY],
            "violetColor": tones[Tone.ASIDE],
            "grayColor": tones[Tone.NEUTRAL],
        }.items():
            options[f"theme.{theme}.{option}"] = value
    return options


def variables(theme: Theme) -> str:
    """The colours as CSS custom properties, for the style sheet."""
    pairs = {**{tone.value: value for tone, value in COLOURS[theme].items()}, **SURFACES[theme], "mono": MONO}
    return ":root{" + "".join(f"--rk-{name}:{value};" for name, value in pairs.items()) + "}"
