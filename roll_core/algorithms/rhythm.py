"""Credit by attention rhythm (arXiv 2510.13554): which tokens of a response prepare and which carry it, and what factor
γ on the advantage that earns them.

From attention maps to two numbers per token: WAAD, how far back the local heads look (it jumps where a chunk begins),
and FAI, how much the global heads of later tokens look here (it is high at anchors). From these, γ per token.

Invariants: every row is judged by itself, so neither other rows nor padding change anything; γ is 1 on context, at
least 1 elsewhere, so no sign of an advantage changes; ``amplification = 1`` gives γ ≡ 1; ties go to the earlier token.

What the paper leaves open and is decided here is marked [ours]. Positions, and so the distances t − s and the
neighbours t + 1 and t − k, are those in the whole sequence, context included: attention crosses what the environment
said, and a token that follows an observation is no neighbour of the one before it.

Shape legend: B rows, T tokens, H heads of one layer, N heads of all layers that are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from roll_core.algorithms.credit import Credit, CreditTransform, Evidence

Strategy = Literal["local_chunk", "global_anchor", "coupled", "random", "entropy", "bottom"]

_NEEDS: dict[str, tuple[str, ...]] = {
    "local_chunk": ("waad_BT",),
    "global_anchor": ("fai_BT",),
    "coupled": ("waad_BT", "fai_BT"),
    "random": (),
    "entropy": ("entropy_BT",),
    "bottom": ("fai_BT",),
}
PEAK_SHARE = 0.1
"""A peak of WAAD or FAI is a token among the highest tenth of its response [ours]: at the 40 % that are amplified,
nearly every window of four tokens would hold one by chance."""


@dataclass(frozen=True, slots=True)
class RhythmSettings:
    """The recipe's section ``rhythm``, whose keys say what each is. Raises ValueError for what cannot be meant."""

    strategy: Strategy = "coupled"
    amplification: float = 1.5
    top: float = 0.4
    window: int = 10
    horizon: tuple[int, int] = (10, 100)
    head_share: float = 0.3
    layers: int = 5
    lookback: int = 3
    share_back: float = 0.4

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"rhythm.strategy {self.strategy!r} is unknown; one of {', '.join(get_args(Strategy))}")
        if self.amplification < 1:
            raise ValueError(f"rhythm.amplification={self.amplification} must be at least 1: it amplifies")
        if not 1 <= self.horizon[0] <= self.horizon[1]:
            raise ValueError(f"rhythm.horizon={self.horizon} must be [from, to] with 1 ≤ from ≤ to")
        for name in ("top", "share_back"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rhythm.{name}={getattr(self, name)} must be a share, 0 to 1")
        if not 0 < self.head_share <= 0.5:
            raise ValueError(f"rhythm.head_share={self.head_share} must be above 0 and at most 0.5")
        for name in ("window", "layers", "lookback"):
            if getattr(self, name) < 1:
                raise ValueError(f"rhythm.{name}={getattr(self, name)} must be at least 1")


# --- from maps to numbers --------------------------------------------------------------------------------------------


def head_span(map_HTT: Tensor, mask_T: Tensor) -> Tensor:
    """d_H = 1/|R| Σ_{t∈R} Σ_{s≤t} A_{t,s}·(t − s) [spec], tokens; 0 where R, the mask, is empty.

    ``map_HTT``: causal, rows sum to 1.
    """
    rows_HT = (map_HTT * _distance(map_HTT)).sum(-1)
    return (rows_HT * mask_T).sum(-1) / mask_T.sum().clamp(min=1)


def head_sets(span_BN: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The local heads (shortest spans) and the global ones (longest), two bool BN, ``share`` of the N each [spec].

    The number is rounded to the nearest, at least one; all heads of the chosen layers are ranked together, and for
    every response anew [ours].
    """
    every_BN = torch.ones_like(span_BN)
    return top_share(-span_BN, every_BN, share), top_share(span_BN, every_BN, share)


def waad_of(map_TT: Tensor, mask_T: Tensor, window: int) -> Tensor:
    """WAAD_t = Σ_{s≤t} Ā_{t,s}·min(t − s, W) [spec] for t in the mask, else 0; ``map_TT`` the local heads' mean."""
    return (map_TT * _distance(map_TT).clamp(max=window)).sum(-1) * mask_T


def fai_of(map_TT: Tensor, mask_T: Tensor, horizon: tuple[int, int]) -> Tensor:
    """FAI_s = mean of Ā_{t,s} over the t in the mask with s + lo ≤ t ≤ s + hi [spec], for s in the mask; 0 where there
    is no such t [ours]. ``map_TT``: the global heads' mean. ``(1, T)`` means all later tokens."""
    distance_TT = _distance(map_TT)
    seen_TT = (distance_TT >= horizon[0]) & (distance_TT <= horizon[1]) & (mask_T > 0).unsqueeze(1)
    return (map_TT * seen_TT).sum(0) / seen_TT.sum(0).clamp(min=1) * mask_T


def _distance(map_TT: Tensor) -> Tensor:
    """t − s, 0 above the diagonal."""
    position_T = torch.arange(map_TT.shape[-1], device=map_TT.device)
    return (position_T.unsqueeze(1) - position_T).clamp(min=0).to(map_TT.dtype)


# --- from numbers to tokens ------------------------------------------------------------------------------------------


def share_count(share: float, n: int) -> int:
    """How many of ``n`` the share is: the nearest whole number, halves up, but at least one of any [ours]."""
    return min(n, max(1, math.floor(share * n + 0.5 + 1e-9))) if share > 0 and n > 0 else 0


def top_share(score_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """Bool BT: the tokens of the mask with the highest scores, :func:`share_count` of each row; ties to the earlier."""
    inside_BT = mask_BT > 0
    count_B = torch.tensor([share_count(share, int(n)) for n in inside_BT.sum(1).tolist()], device=mask_BT.device)
    order_BT = score_BT.masked_fill(~inside_BT, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank_BT = torch.empty_like(order_BT)
    rank_BT.scatter_(1, order_BT, torch.arange(order_BT.shape[1], device=order_BT.device).expand_as(order_BT))
    return (rank_BT < count_B.unsqueeze(1)) & inside_BT


def waad_change(waad_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Δ_t = |WAAD_t − WAAD_{t+1}| [spec]; 0 where t + 1 is no token of the response, at the end of each turn [ours]."""
    own_BT = mask_BT > 0
    change_BT = torch.zeros_like(waad_BT)
    change_BT[:, :-1] = (waad_BT[:, :-1] - waad_BT[:, 1:]).abs() * (own_BT[:, :-1] & own_BT[:, 1:])
    return change_BT


@dataclass(frozen=True, slots=True)
class Marks:
    """What the rhythm of a batch consists of, BT each; bools false outside the mask."""

    change_BT: Tensor
    """Δ."""
    anchor_BT: Tensor
    """T_glob: the top share by FAI."""
    dominated_BT: Tensor
    """D: the anchors that are locally dominated."""
    preplan_BT: Tensor
    """intro(D): the tokens that introduce them."""


def marks(waad_BT: Tensor, fai_BT: Tensor, mask_BT: Tensor, settings: RhythmSettings) -> Marks:
    """An anchor t is in D iff WAAD_t ≤ τ_waad and max Δ_u ≥ τ_Δ over u ∈ [t − k, t − 1] [spec].

    [ours] τ_waad: the median of WAAD over the response, of an even number the mean of the middle two. τ_Δ: the least Δ
    among the top share by Δ. intro(t): the u of the greatest Δ, the earliest of several; only the response's own tokens
    can be one, so an anchor without any in its window is not dominated.
    """
    own_BT = mask_BT > 0
    change_BT = waad_change(waad_BT, mask_BT)
    anchor_BT = top_share(fai_BT, mask_BT, settings.top)
    jump_BT = top_share(change_BT, mask_BT, settings.top)
    threshold_B1 = change_BT.masked_fill(~jump_BT, math.inf).amin(1, keepdim=True)
    best_BT = torch.full_like(change_BT, -math.inf)
    back_BT = torch.zeros_like(change_BT, dtype=torch.int64)
    for back in range(min(settings.lookback, change_BT.shape[1] - 1), 0, -1):
        before_BT = torch.full_like(change_BT, -math.inf)
        before_BT[:, back:] = change_BT.masked_fill(~own_BT, -math.inf)[:, :-back]
        better_BT = before_BT > best_BT  # strictly: the farthest back, the earliest, is met first and kept
        best_BT = torch.where(better_BT, before_BT, best_BT)
        back_BT = torch.where(better_BT, back, back_BT)
    calm_BT = waad_BT <= masked_median(waad_BT, mask_BT).unsqueeze(1)
    dominated_BT = anchor_BT & calm_BT & (back_BT > 0) & (best_BT >= threshold_B1)
    preplan_BT = torch.zeros_like(own_BT)
    row_n, position_n = dominated_BT.nonzero(as_tuple=True)
    preplan_BT[row_n, position_n - back_BT[row_n, position_n]] = True
    return Marks(change_BT, anchor_BT, dominated_BT, preplan_BT)


def masked_median(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The median of each row over its mask, B; of an even number the mean of the middle two; 0 of none."""
    count_B = (mask_BT > 0).sum(1)
    ordered_BT = x_BT.masked_fill(mask_BT <= 0, math.inf).sort(1).values
    last_B = (count_B - 1).clamp(min=0)
    middle_B2 = torch.stack((last_B // 2, (last_B + 1) // 2), 1)
    median_B = ordered_BT.gather(1, middle_B2).mean(1)
    return torch.where(count_B > 0, median_B, torch.zeros_like(median_B))


# --- from tokens to credit -------------------------------------------------------------------------------------------


def rhythm_gamma(settings: RhythmSettings, evidence: Evidence) -> Tensor:
    """γ_BT, 1 outside the mask, no gradient. Raises ValueError when ``evidence`` lacks what the strategy looks at.

    local_chunk: γ_amp on the top share by Δ. global_anchor: on the top share by FAI. coupled [spec]:
    γ_t = 1 + (γ_amp − 1)·(1[t ∈ T_glob∖D] + (1 − a)·1[t ∈ D] + a·1[t ∈ intro(D)]); intro(D) is a set, so what a token
    gets for introducing does not grow with the number of anchors that it introduces [ours]. Controls [ours]: random,
    drawn from ``evidence.generator``; entropy, the highest; bottom, the lowest FAI.
    """
    mask_BT, bonus = evidence.mask_BT, settings.amplification - 1
    waad_BT, fai_BT, entropy_BT = evidence.waad_BT, evidence.fai_BT, evidence.entropy_BT
    missing = [name for name in _NEEDS[settings.strategy] if getattr(evidence, name) is None]
    if missing:
        raise ValueError(
            f"rhythm.strategy {settings.strategy!r} looks at {', '.join(missing)}, which nobody computed: give the "
            "roles an actor_attn (WAAD, FAI), or the update the policy's entropy."
        )
    if settings.strategy == "coupled":
        assert waad_BT is not None
        assert fai_BT is not None
        found, a = marks(waad_BT, fai_BT, mask_BT, settings), settings.share_back
        alone_BT = found.anchor_BT & ~found.dominated_BT
        share_BT = alone_BT * 1.0 + found.dominated_BT * (1 - a) + found.preplan_BT * a
        return 1 + bonus * share_BT
    if settings.strategy == "local_chunk":
        assert waad_BT is not None
        score_BT = waad_change(waad_BT, mask_BT)
    elif settings.strategy == "entropy":
        assert entropy_BT is not None
        score_BT = entropy_BT
    elif settings.strategy == "random":
        score_BT = torch.rand(mask_BT.shape, generator=evidence.generator).to(mask_BT.device)
    else:
        assert fai_BT is not None
        score_BT = -fai_BT if settings.strategy == "bottom" else fai_BT
    return 1 + bonus * top_share(score_BT, mask_BT, settings.top)


def rhythm_credit(settings: RhythmSettings) -> CreditTransform:
    """Ã_t = A_t·γ_t on both signs [spec]; the entropy bonus stays as it is."""

    def transform(credit: Credit, evidence: Evidence) -> Credit:
        gamma_BT = rhythm_gamma(settings, evidence).to(credit.advantages_BT.dtype)
        return Credit(credit.advantages_BT * gamma_BT, credit.entropy_weight_BT)

    return transform


# --- coupling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coupling:
    """Sums over responses of what the paper's coupling statistics are made of; add those of more responses."""

    tokens: float = 0.0
    entropy: float = 0.0
    """Nats, over all tokens whose entropy is known."""
    entropy_tokens: float = 0.0
    peaks: float = 0.0
    """WAAD peaks whose entropy is known."""
    peak_entropy: float = 0.0
    anchors: float = 0.0
    """FAI peaks."""
    followed: float = 0.0
    """… that follow or coincide with a WAAD peak, at most ``lookback`` tokens later."""
    expected: float = 0.0
    """… that would if FAI's peaks were shuffled over the response: the exact mean, not a draw."""

    def __add__(self, other: Coupling) -> Coupling:
        names = self.__dataclass_fields__
        return Coupling(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def entropy_gain(self) -> float | None:
        """How much higher the entropy at WAAD peaks is than over all tokens, 0.52 in the paper; None if unknown."""
        if not self.peaks or not self.entropy:
            return None
        return (self.peak_entropy / self.peaks) / (self.entropy / self.entropy_tokens) - 1

    @property
    def following_gain(self) -> float | None:
        """How much more often FAI peaks follow WAAD peaks than shuffled ones, 0.42 in the paper; None if unknown."""
        return self.followed / self.expected - 1 if self.expected else None


def coupling(
    waad_BT: Tensor, fai_BT: Tensor, mask_BT: Tensor, lookback: int, entropy_BT: Tensor | None = None
) -> Coupling:
    """The coupling of a batch. ``entropy_BT`` in nats, where it is known."""
    own_BT = mask_BT > 0
    waad_peak_BT, fai_peak_BT = top_share(waad_BT, mask_BT, PEAK_SHARE), top_share(fai_BT, mask_BT, PEAK_SHARE)
    near_BT = waad_peak_BT.clone()
    for back in range(1, min(lookback, near_BT.shape[1] - 1) + 1):
        near_BT[:, back:] |= waad_peak_BT[:, :-back]
    near_BT &= own_BT
    count_B, peaks_B = own_BT.sum(1).double(), fai_peak_BT.sum(1).double()
    expected = (peaks_B * near_BT.sum(1) / count_B.clamp(min=1)).sum()
    found = Coupling(
        tokens=float(count_B.sum()),
        anchors=float(peaks_B.sum()),
        followed=float((fai_peak_BT & near_BT).sum()),
        expected=float(expected),
    )
    if entropy_BT is None:
        return found
    return found + Coupling(
        entropy=float(entropy_BT[own_BT].double().sum()),
        entropy_tokens=float(count_B.sum()),
        peaks=float(waad_peak_BT.sum()),
        peak_entropy=float(entropy_BT[waad_peak_BT].double().sum()),
    )
