"""Turns logits into tokens, one row per request, and says with what probability.

Invariants: the log-prob returned is that of the distribution the token was drawn from, renormalised after top-p;
a row's draw depends on its logits, its seed and the index of the token, and on no other row.

Shape legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each pair, from the pair alone: SplitMix64 used as a counter-based generator."""
    with np.errstate(over="ignore"):
        z = np.array([s & 0xFFFFFFFFFFFFFFFF for s in seeds], dtype=np.uint64)
        z = _mix(z) + np.array(indices, dtype=np.uint64) * _GOLDEN
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _draw(probs_RV: Tensor, uniform_R1: Tensor) -> Tensor:
    """Inverse transform: the first column whose cumulative sum exceeds u · total. Never a column of probability 0."""
    cumulative_RV = probs_RV.cumsum(-1)
    total_R1 = cumulative_RV[:, -1:]
    below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
    column_R1 = torch.searchsorted(cumulative_RV, torch.minimum(uniform_R1 * total_R1, below_R1), right=True)
    return column_R1.clamp_(max=probs_RV.shape[1] - 1)  # only NaN gets past the end; its log-prob will tell


def _draw_nucleus(probs_RV: Tensor, top_p_R1: Tensor, uniform_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the fewest most probable columns that together reach top_p. Returns columns and renormalised probs."""
    sorted_RV, order_RV = probs_RV.sort(-1, descending=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    kept_RV = sorted_RV.masked_fill(before_RV >= top_p_R1, 0.0)
    kept_RV[:, 0] = sorted_RV[:, 0]  # rounding must not leave a row empty
    column_R1 = _draw(kept_RV, uniform_R1)
    return order_RV.gather(-1, column_R1), kept_RV.gather(-1, column_R1) / kept_RV.sum(-1, keepdim=True)


def sample(
    logits_RV: Tensor, temperature: Sequence[float], top_p: Sequence[float], uniform: npt.NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Tokens (R, int64) and their log-probs (R, float32).

    ``temperature`` 0 takes the most probable token and reports its log-prob at temperature 1 (top-p is then moot).
    """
    device = logits_RV.device
    logits_RV = logits_RV.float()
    greedy = [t == 0.0 for t in temperature]
    if any(t not in (0.0, 1.0) for t in temperature):
        scale = torch.tensor([t or 1.0 for t in temperature], dtype=torch.float32, device=device)
        logits_RV = logits_RV / scale.unsqueeze(1)
    probs_RV = logits_RV.softmax(-1)
    if all(greedy):
        prob_R, token_R = probs_RV.max(-1)
        return token_R, prob_R.log()
    uniform_R1 = torch.from_numpy(uniform).to(device, torch.float32).unsqueeze(1)
    if any(p < 1.0 for p in top_p):
        top_p_R1 = torch.tensor(top_p, dtype=torch.float32, device=device).unsqueeze(1)
        token_R1, prob_R1 = _draw_nucleus(probs_RV, top_p_R1, uniform_R1)
    else:
        token_R1 = _draw(probs_RV, uniform_R1)
        prob_R1 = probs_RV.gather(-1, token_R1)
    if any(greedy):
        best_R1, best_token_R1 = probs_RV.max(-1, keepdim=True)
        greedy_R1 = torch.tensor(greedy, device=device).unsqueeze(1)
        token_R1 = torch.where(greedy_R1, best_token_R1, token_R1)
        prob_R1 = torch.where(greedy_R1, best_R1, prob_R1)
    return token_R1.squeeze(1), prob_R1.squeeze(1).log()
