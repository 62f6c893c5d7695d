"""Masked reductions, and how per-token losses become one number.

Invariants: a masked token changes nothing, even if it is not finite; a mean divides by the mask's own count; a loss is
Σ weight · token loss with weights from the whole batch's mask, so any split into micro-batches adds up to the same.

Shape legend: B rows, T tokens; masks are float, 1 where a token counts.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant-length"]


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Σ x over the mask. ``x`` may be anything, NaN included, outside of it."""
    kept = torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Σ x / Σ mask; 0 where the mask is empty."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x − mean) / (sample std + eps) over the mask; 0 outside of it. A mask of one token gives 0."""
    mean = masked_mean(x, mask)
    variance = masked_sum((x - mean).square(), mask) / (mask.sum() - 1).clamp(min=1)
    return torch.where(mask.bool(), (x - mean) / (variance.sqrt() + eps), torch.zeros_like(x))


def token_weights(mask_BT: Tensor, how: Aggregation, length: int | None = None) -> Tensor:
    """Weight of each token in the loss of the whole batch, 0 outside the mask.

    token-mean (DAPO, arXiv 2503.14476): 1 / Σ mask. seq-mean-token-mean (GRPO, arXiv 2402.03300): 1 / (rows · the row's
    own count). seq-mean-token-sum (a sequence as one action, RLOO, arXiv 2402.14740): 1 / rows. constant-length (Dr.
    GRPO, arXiv 2503.20783): 1 / (rows · ``length``), ``length`` the T of the mask unless given. Rows without a token do
    not count.
    """
    count_B1 = mask_BT.sum(1, keepdim=True)
    rows = (count_B1 > 0).sum().clamp(min=1)
    if how == "token-mean":
        return mask_BT / mask_BT.sum().clamp(min=1)
    if how == "seq-mean-token-mean":
        return mask_BT / (rows * count_B1.clamp(min=1))
    if how == "seq-mean-token-sum":
        return mask_BT / rows
    if how == "constant-length":
        return mask_BT / (rows * (length or mask_BT.shape[1]))
    raise ValueError(f"unknown aggregation {how!r}; expected one of {', '.join(get_args(Aggregation))}")


def aggregate(loss_BT: Tensor, mask_BT: Tensor, how: Aggregation, length: int | None = None) -> Tensor:
    """The loss of a batch as one number; see :func:`token_weights`."""
    return masked_sum(loss_BT * token_weights(mask_BT, how, length).to(loss_BT.dtype), mask_BT)
