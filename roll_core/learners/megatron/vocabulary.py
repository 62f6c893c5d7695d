"""Log-probs and entropy from logits that are cut over the tensor-parallel ranks by vocabulary.

Invariants: no rank ever holds a whole row of logits; what is exchanged is three numbers per position; every rank ends
with the same values; ids beyond the vocabulary (padding of the embedding) have probability 0 and no gradient.

Shape legend: N positions, V vocabulary, v the share of it that this rank has.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_NEVER = -1e30
"""Logit of padding: e to the power of it is 0, and 0 times it is still 0, as with -inf it would not be."""


class _Score(torch.autograd.Function):
    """log p(target) and entropy H of softmax(logits); ∂log p/∂z = 1[target] − p, ∂H/∂z = −p (log p + H)."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, logits_Nv: Tensor, target_N: Tensor, first: int, valid: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        logits_Nv = logits_Nv.float()
        if valid < logits_Nv.shape[1]:
            logits_Nv = logits_Nv.clone()
            logits_Nv[:, valid:] = _NEVER
        top_N = logits_Nv.amax(1)
        _reduce(top_N, dist.ReduceOp.MAX, group)
        logits_Nv = logits_Nv - top_N.unsqueeze(1)
        exp_Nv = logits_Nv.exp()
        here_N = (target_N >= first) & (target_N < first + valid)
        local_N = torch.where(here_N, target_N - first, 0)
        target_logit_N = logits_Nv.gather(1, local_N.unsqueeze(1)).squeeze(1) * here_N
        sums_3N = torch.stack((exp_Nv.sum(1), (exp_Nv * logits_Nv).sum(1), target_logit_N))
        _reduce(sums_3N, dist.ReduceOp.SUM, group)
        norm_N, weighted_N, target_logit_N = sums_3N
        log_norm_N = norm_N.log()
        entropy_N = log_norm_N - weighted_N / norm_N
        ctx.save_for_backward(logits_Nv, log_norm_N, entropy_N, local_N, here_N)
        return target_logit_N - log_norm_N, entropy_N

    @staticmethod
    def backward(ctx, by_logprob_N: Tensor, by_entropy_N: Tensor):  # type: ignore[no-untyped-def]
        logits_Nv, log_norm_N, entropy_N, local_N, here_N = ctx.saved_tensors
        logp_Nv = logits_Nv - log_norm_N.unsqueeze(1)
        p_Nv = logp_Nv.exp()
        factor_Nv = by_logprob_N.unsqueeze(1) + by_entropy_N.unsqueeze(1) * (logp_Nv + entropy_N.unsqueeze(1))
        grad_Nv = -p_Nv * factor_Nv
        grad_Nv.scatter_add_(1, local_N.unsqueeze(1), (by_logprob_N * here_N).unsqueeze(1))
        return grad_Nv, None, None, None, None


def _reduce(tensor: Tensor, how: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, how, group)


def vocab_parallel_score(
    logits_Nv: Tensor,
    target_N: Tensor,
    *,
    vocab: int,
    rank: int = 0,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of ``target_N`` and entropy (nats), N float32 each, of the policy at ``temperature``.

    ``vocab``: ids that exist, in all ranks together; ``rank``: of this process in ``group`` (None: alone).
    """
    width = logits_Nv.shape[1]
    first = rank * width
    valid = max(0, min(width, vocab - first))
    scaled_Nv = logits_Nv if temperature == 1.0 else logits_Nv.float() / temperature
    logprob_N, entropy_N = _Score.apply(scaled_Nv, target_N, first, valid, group)  # type: ignore[no-untyped-call]
    return logprob_N, entropy_N
