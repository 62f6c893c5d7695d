"""What goes through Megatron's model in one pass, and where its results belong.

Rows are padded to the longest and lie side by side, or are packed: end to end in one row, each attending to itself
alone and counting its positions from 0. Packed rows are described as Megatron does it (``PackedSeqParams``, ``thd``),
so that torch's attention and Transformer Engine's take the same.

Invariants: positions that were added to come out even are their own sequence, or follow all others of their row, and
are never chosen; results are where they would be if rows had not been packed.

Shape legend: B rows, T tokens, N chosen positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from roll_core.learners.logprobs import Scored
from roll_core.types import TrainBatch

Part = tuple[list[int], slice]
"""Index of a micro-batch into BT."""


@dataclass(frozen=True, slots=True)
class Pass:
    """``tokens_BT`` go in; packed, B is 1. ``chosen_N`` of them, flattened, predict ``target_N``."""

    tokens_BT: Tensor
    chosen_N: Tensor
    target_N: Tensor
    packing: PackedSeqParams | None
    shape: tuple[int, int]
    """Rows and width of the micro-batch."""
    place_N: Tensor
    """Of the targets in the flattened micro-batch."""

    def scored(self, logprob_N: Tensor, entropy_N: Tensor) -> Scored:
        """0 where nothing was chosen."""

        def dense(value_N: Tensor) -> Tensor:
            rows, width = self.shape
            return value_N.new_zeros(rows * width).index_copy(0, self.place_N, value_N).view(rows, width)

        return Scored(dense(logprob_N), dense(entropy_N))


def lay_out(batch: TrainBatch, part: Part | None, lengths: list[int], *, packed: bool, multiple: int = 1) -> Pass:
    """``part`` of the batch; None is a pass beside those of others, of a single position. ``lengths``: of all rows;
    ``multiple``: of what the number of positions in a row has to be one."""
    if part is None:
        part, lengths = ([0], slice(0, 2)), [2] * len(lengths)
        tokens_BT = batch.tokens_BT[part]
        targets_BT = torch.ones_like(tokens_BT[:, 1:], dtype=torch.bool)
    else:
        tokens_BT = batch.tokens_BT[part]
        targets_BT = batch.mask_BT[part][:, 1:] > 0
    row_N, time_N = targets_BT.nonzero(as_tuple=True)
    rows, width = tokens_BT.shape
    sizes = [max(1, lengths[row] - 1) for row in part[0]] if packed else [width - 1] * rows
    extra = -(sum(sizes) if packed else sizes[0]) % multiple
    begins = list(accumulate(sizes, initial=0)) if packed else [row * (width - 1 + extra) for row in range(rows)]
    begin_B = torch.tensor(begins, device=tokens_BT.device)
    packing = None
    if packed:
        pieces = [tokens_BT[row, :size] for row, size in enumerate(sizes)]
        inputs_BT = F.pad(torch.cat(pieces).unsqueeze(0), (0, extra))
        packing = _described(sizes + [extra] * (extra > 0), inputs_BT.device)
    else:
        inputs_BT = F.pad(tokens_BT[:, :-1], (0, extra))
    return Pass(
        inputs_BT,
        begin_B[row_N] + time_N,
        tokens_BT[row_N, time_N + 1],
        packing,
        (rows, width),
        row_N * width + time_N + 1,
    )


def _described(sizes: list[int], device: torch.device) -> PackedSeqParams:
    ends = torch.tensor(list(accumulate(sizes, initial=0)), dtype=torch.int32, device=device)
    longest = max(sizes)
    return PackedSeqParams("thd", ends, ends, max_seqlen_q=longest, max_seqlen_kv=longest)
