"""How far the policy that is trained is from the one that sampled, by age of the tokens.

At lag 0 both are the same weights, so whatever is measured there is the engine's arithmetic against the learner's:
kernels, precision, sampling parameters, or a defect. At greater lags the policy's own movement comes on top.

Invariants: only response tokens count; a batch may be added in any parts; a lag without tokens has no numbers.

Symbols: w = π_learner/π_engine of a sampled token. Shape legend: B rows, T tokens, L lags (0, 1, 2, 3 and more).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from roll_core.algorithms.policy_losses import log_ratio

LAGS = 4
"""The last holds this many less one, and more: by then the numbers of a healthy run are dominated by learning."""


def _zeros() -> Tensor:
    return torch.zeros(LAGS, dtype=torch.float64)


@dataclass(slots=True)
class MismatchMeter:
    """Sums over tokens, L each."""

    tokens_L: Tensor = field(default_factory=_zeros)
    gap_L: Tensor = field(default_factory=_zeros)
    largest_L: Tensor = field(default_factory=_zeros)
    k3_L: Tensor = field(default_factory=_zeros)
    weight_L: Tensor = field(default_factory=_zeros)
    square_L: Tensor = field(default_factory=_zeros)
    seen_L: Tensor = field(default_factory=_zeros)
    clipped_L: Tensor = field(default_factory=_zeros)

    def add(self, logprobs_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, lag_BT: Tensor) -> None:
        """Tokens as the learner sees them before any update, beside what the engine said of them."""
        inside = mask_BT > 0
        log_w_N = log_ratio(logprobs_BT.detach(), behaviour_BT, mask_BT)[inside].double().cpu()
        lag_N, w_N = _bucket(lag_BT[inside]), log_w_N.exp()
        self.tokens_L.index_add_(0, lag_N, torch.ones_like(w_N))
        self.gap_L.index_add_(0, lag_N, log_w_N.abs())
        self.largest_L.scatter_reduce_(0, lag_N, log_w_N.abs(), "amax")
        self.k3_L.index_add_(0, lag_N, w_N - 1 - log_w_N)
        self.weight_L.index_add_(0, lag_N, w_N)
        self.square_L.index_add_(0, lag_N, w_N.square())

    def add_clipped(self, clipped_BT: Tensor, mask_BT: Tensor, lag_BT: Tensor) -> None:
        """Tokens of any update, and where its clip or cap took effect."""
        inside = mask_BT > 0
        lag_N, clipped_N = _bucket(lag_BT[inside]), clipped_BT[inside].double().cpu()
        self.seen_L.index_add_(0, lag_N, torch.ones_like(clipped_N))
        self.clipped_L.index_add_(0, lag_N, clipped_N)

    def merge(self, other: MismatchMeter) -> None:
        """Take in the sums of ``other``, of other tokens of the same batch."""
        for f in fields(self):
            mine_L, theirs_L = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, mine_L.maximum(theirs_L) if f.name == "largest_L" else mine_L + theirs_L)

    def values(self) -> dict[str, float]:
        """``mismatch/NAME`` over all tokens and ``mismatch/NAME_at_K`` by lag (``_at_3_up`` the last).

        ``gap_mean``, ``gap_max``: |log w|. ``k3``: KL(π_engine ‖ π_learner), w − 1 − log w (J. Schulman, 2020).
        ``ess``: effective sample size as a share, (Σw)²/(n Σw²): 1 where nothing is lost to importance weighting.
        ``clipped``: share of tokens at which the loss's clip or cap took effect. ``share``: of the tokens that are
        this old.
        """
        every = torch.ones(LAGS, dtype=torch.bool)
        found = self._of(every, "")
        for lag in range(LAGS):
            only = torch.zeros(LAGS, dtype=torch.bool)
            only[lag] = True
            found |= self._of(only, f"_at_{lag}{'_up' if lag == LAGS - 1 else ''}")
        return found

    def _of(self, lags: Tensor, suffix: str) -> dict[str, float]:
        values: dict[str, float] = {}
        if (n := self.tokens_L[lags].sum().item()) > 0:
            weight, square = self.weight_L[lags].sum().item(), self.square_L[lags].sum().item()
            values = {
                "gap_mean": self.gap_L[lags].sum().item() / n,
                "gap_max": self.largest_L[lags].max().item(),
                "k3": self.k3_L[lags].sum().item() / n,
                "ess": weight * weight / (n * square),
            }
            if suffix:
                values["share"] = n / self.tokens_L.sum().item()
        if (n := self.seen_L[lags].sum().item()) > 0:
            values["clipped"] = self.clipped_L[lags].sum().item() / n
        return {f"mismatch/{name}{suffix}": value for name, value in values.items()}


def _bucket(lag_N: Tensor) -> Tensor:
    return lag_N.clamp(0, LAGS - 1).long().cpu()
