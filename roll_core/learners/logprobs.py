"""Log-probs of the tokens a policy sampled, without the logits of those it did not.

Invariants: only response positions pass through the end of the last layer and the language-model head (context is most
of an agent's tokens, and the head is the widest matrix); logits of at most ``head_tokens`` positions exist at once, in
the backward pass too.

Shape legend: B rows, T tokens, N response tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from roll_core.algorithms import entropy
from roll_core.models.qwen import CausalLM


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-prob and entropy (nats) per position, BT, 0 outside the mask."""

    logprobs_BT: Tensor
    entropy_BT: Tensor


def score(
    model: CausalLM,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    *,
    temperature: float = 1.0,
    head_tokens: int = 4096,
    entropy_gradient: bool = False,
) -> Scored:
    """Log-probs of ``tokens_BT`` where the mask is 1, of the policy at ``temperature``. Token 0 is never a target."""
    rows, length = tokens_BT.shape
    chosen = (mask_BT[:, 1:] > 0).flatten().nonzero().squeeze(1)
    hidden_ND = model.hidden(tokens_BT[:, :-1], chosen)
    target_N = tokens_BT[:, 1:].flatten().index_select(0, chosen)
    head_VD = model.head_VD

    def chunk(hidden_nD: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        logits_nV = (hidden_nD @ head_VD.t()).float()
        logprobs_nV = (logits_nV if temperature == 1.0 else logits_nV / temperature).log_softmax(-1)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy_n = entropy(logprobs_nV)
        return logprobs_nV.gather(1, target_n.unsqueeze(1)).squeeze(1), entropy_n

    parts = []
    for begin in range(0, max(len(chosen), 1), head_tokens):
        part = (hidden_ND[begin : begin + head_tokens], target_N[begin : begin + head_tokens])
        several = len(chosen) > head_tokens and torch.is_grad_enabled()
        parts.append(checkpoint(chunk, *part, use_reentrant=False) if several else chunk(*part))

    def dense(values: list[Tensor]) -> Tensor:
        flat = hidden_ND.new_zeros(rows * (length - 1), dtype=torch.float32)
        body_BT = flat.index_copy(0, chosen, torch.cat(values)).view(rows, length - 1)
        return torch.cat((body_BT.new_zeros(rows, 1), body_BT), 1)

    return Scored(dense([p[0] for p in parts]), dense([p[1] for p in parts]))
