"""actor_attn: the policy that gives its attention away (arXiv 2510.13554), for the credit of attention rhythm.

Invariants: it speaks of the policy at the start of the update; rows without advantage are spared, as in the learner,
and have zeros; the mean over a set of heads is taken per row, from that row's own head spans.

Shape legend: B rows, T tokens, N heads of all layers that are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roll_core.algorithms.rhythm import RhythmSettings, head_sets
from roll_core.learners.base import Rhythm
from roll_core.learners.logprobs import micro_batches, row_lengths
from roll_core.models.attention import MAP_ELEMENTS, HeadRhythm, chosen_layers, head_rhythm
from roll_core.models.checkpoint import load_tensors
from roll_core.models.lora import plain_copy
from roll_core.models.qwen import CausalLM
from roll_core.types import TrainBatch, Weights

_ON_A_GPU = 64


@dataclass(frozen=True, slots=True)
class Attended:
    """The attention of one batch, with what chose the heads."""

    rhythm: Rhythm
    span_BN: Tensor
    local_BN: Tensor
    """bool."""
    global_BN: Tensor
    """bool."""


class AttentionReader:
    """An :class:`~roll_core.learners.base.ActorAttn`."""

    def __init__(
        self, model: CausalLM, settings: RhythmSettings, *, shared: bool, micro_batch_tokens: int = 8192
    ) -> None:
        """``shared``: ``model`` is the one that the learner trains in place, so it is always the present policy and
        nothing is ever copied. Otherwise this keeps a copy that :meth:`load_weights` brings up to date."""
        self.model = model if shared else plain_copy(model).requires_grad_(False)
        self.layers = chosen_layers(model.config.layers, settings.layers)
        self.settings = settings
        self._shared = shared
        self._micro_batch_tokens = micro_batch_tokens

    def load_weights(self, weights: Weights) -> None:
        """Be the policy of this version. Raises CheckpointError when the weights are another model's."""
        if not self._shared:
            load_tensors(self.model, weights.tensors)

    def rhythm(self, batch: TrainBatch) -> Rhythm:
        return self.attended(batch.tokens_BT, batch.mask_BT, telling_rows(batch)).rhythm

    def attended(self, tokens_BT: Tensor, mask_BT: Tensor, rows: list[int] | None = None) -> Attended:
        """The rhythm of ``rows`` (all of them), zeros in the others; on the CPU."""
        shape, heads = tuple(tokens_BT.shape), len(self.layers) * self.model.config.heads
        out = Attended(
            Rhythm(torch.zeros(shape), torch.zeros(shape)),
            torch.zeros(shape[0], heads),
            torch.zeros(shape[0], heads, dtype=torch.bool),
            torch.zeros(shape[0], heads, dtype=torch.bool),
        )
        lengths = row_lengths(mask_BT)
        wanted = list(range(shape[0])) if rows is None else rows
        for some in micro_batches(wanted, lengths, self._micro_batch_tokens):
            length = lengths[some[0]]
            found = self._read(tokens_BT[some, :length], mask_BT[some, :length])
            local_bN, global_bN = head_sets(found.span_BN, self.settings.head_share)
            out.rhythm.waad_BT[some, :length] = found.mean(found.waad_BNC, local_bN, length).cpu()
            out.rhythm.fai_BT[some, :length] = found.mean(found.fai_BNC, global_bN, length).cpu()
            out.span_BN[some], out.local_BN[some] = found.span_BN.cpu(), local_bN.cpu()
            out.global_BN[some] = global_bN.cpu()
        return out

    def _read(self, tokens_BT: Tensor, mask_BT: Tensor) -> HeadRhythm:
        device = self.model.model.embed_tokens.weight.device
        return head_rhythm(
            self.model,
            tokens_BT.to(device),
            mask_BT.to(device),
            layers=self.layers,
            window=self.settings.window,
            horizon=self.settings.horizon,
            map_elements=MAP_ELEMENTS * (1 if device.type == "cpu" else _ON_A_GPU),
        )


def telling_rows(batch: TrainBatch) -> list[int]:
    """The rows that say anything: γ·0 is 0, so where no token has an advantage nobody need look."""
    told: list[int] = (batch.advantages_BT * batch.mask_BT).any(dim=1).nonzero().flatten().tolist()
    return told
