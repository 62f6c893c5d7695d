"""What a trainer tells of the attention rhythm of an episode, token by token, for people to look at.

The trainer computes it (arXiv 2510.13554); the platform keeps it and the dashboard draws it. Neither knows a formula.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from rock.wire.models import Message

MOST_TOKENS = 16_384
"""Longer episodes are not recorded: a record is read into a page as a whole."""
KEPT = 500
"""Records that a platform keeps of a run, those of the latest steps."""


class RhythmCoupling(Message):
    """Sums over one episode, to be added up over several: see ``Coupling`` in ``roll_core/algorithms/rhythm.py``."""

    tokens: float = 0.0
    entropy: float = 0.0
    entropy_tokens: float = 0.0
    peaks: float = 0.0
    """WAAD peaks."""
    peak_entropy: float = 0.0
    anchors: float = 0.0
    """FAI peaks."""
    followed: float = 0.0
    """… that follow or coincide with a WAAD peak."""
    expected: float = 0.0
    """… that would if they were shuffled."""


class RhythmHead(Message):
    """One attention head of the layers that were looked at."""

    layer: int
    head: int
    span: float
    """Mean distance looked back, tokens."""
    kind: str = ""
    """``local``, ``global``, ``local+global``, or empty."""


class RhythmView(Message):
    """A recorded episode, without its tokens."""

    episode_id: str
    step: int
    """Learner step that trained on it."""
    task: str = ""
    success: bool | None = None
    strategy: str = ""
    """Which tokens were given more credit; `recomputed` records tell what the recipe's strategy would do."""
    coupling: RhythmCoupling = RhythmCoupling()


class EpisodeRhythm(RhythmView):
    """Series of the same length, one entry per token that the policy sampled, in order."""

    tokens: tuple[str, ...]
    """The text of every token of the episode, context included."""
    own: tuple[int, ...]
    """Index in ``tokens`` of each token that the policy sampled."""
    waad: tuple[float, ...]
    """How far back its local heads look, tokens."""
    fai: tuple[float, ...]
    """How much the global heads of later tokens look at it."""
    change: tuple[float, ...]
    """|WAAD − WAAD of the next token|."""
    gamma: tuple[float, ...]
    """The factor on its advantage."""
    advantage: tuple[float, ...]
    """With which it was trained on, the factor included; empty where that is not known."""
    entropy: tuple[float, ...]
    """Of the policy where it was sampled, nats."""
    anchor: tuple[bool, ...]
    preplan: tuple[bool, ...]
    """Introduces a locally dominated anchor."""
    heads: tuple[RhythmHead, ...] = ()

    @model_validator(mode="after")
    def _series_fit(self) -> Self:
        if len(self.tokens) > MOST_TOKENS:
            raise ValueError(f"{len(self.tokens)} tokens are too many to keep; at most {MOST_TOKENS}")
        for name in ("waad", "fai", "change", "gamma", "entropy", "anchor", "preplan"):
            if len(getattr(self, name)) != len(self.own):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, expected {len(self.own)} as own has")
        if self.advantage and len(self.advantage) != len(self.own):
            raise ValueError(f"advantage has {len(self.advantage)} entries, expected {len(self.own)} or none")
        if any(not 0 <= i < len(self.tokens) for i in self.own):
            raise ValueError(f"own names a token that is not among the {len(self.tokens)}")
        return self

    def view(self) -> RhythmView:
        return RhythmView(**{name: getattr(self, name) for name in RhythmView.model_fields})
