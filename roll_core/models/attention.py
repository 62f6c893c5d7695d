"""What a policy attends to while it speaks: eager attention of a few layers, read head by head and never kept.

Invariants: only rows of response tokens are computed; of a map no more than ``map_elements`` numbers exist at once, of
one layer, and what stays is linear in the map: span per head, WAAD and FAI per head and token. So one pass does, and
averaging over the heads that the spans choose afterwards equals averaging their maps first. No gradient.

Row t of a map is that of token t's own query, as in the paper (arXiv 2510.13554), not of the one that predicted it.

Shape legend: B rows, T tokens, C response tokens of the row that has most, c of them at a time, S source positions,
H query heads, K key/value heads, E head dimension, N heads of all layers that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from roll_core.models.qwen import Block, CausalLM, rope_tables

MAP_ELEMENTS = 1 << 20
"""4 MB of float32: a chunk that stays in a CPU's cache. A GPU takes 64 times as much."""


def chosen_layers(layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers evenly spaced in [⌊L/3⌋, ⌊2L/3⌋] [spec], counted from 0; fewer where there are fewer.

    Rounded to the nearest, halves up; a single one is the middle [ours].
    """
    low, high = layers // 3, 2 * layers // 3
    if count == 1:
        return ((low + high) // 2,)
    return tuple(sorted({int(low + (high - low) * i / (count - 1) + 0.5) for i in range(count)}))


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the response tokens of a batch are: C slots a row, those that a shorter row does not need unfilled."""

    position_BC: Tensor
    """int64, rising; 0 where unfilled."""
    filled_BC: Tensor
    """bool."""

    @classmethod
    def of(cls, mask_BT: Tensor) -> Slots:
        own_BT = mask_BT > 0
        order_BT = (~own_BT).to(torch.int8).argsort(dim=1, stable=True)
        count_B = own_BT.sum(1)
        order_BC = order_BT[:, : max(1, int(count_B.max()))]
        filled_BC = torch.arange(order_BC.shape[1], device=mask_BT.device) < count_B.unsqueeze(1)
        return cls(order_BC * filled_BC, filled_BC)

    def spread(self, values_BC: Tensor, length: int) -> Tensor:
        """BT with ``values_BC`` at their positions and 0 elsewhere."""
        out_BT = values_BC.new_zeros(len(values_BC), length)
        return out_BT.scatter_add_(1, self.position_BC, values_BC * self.filled_BC)


@dataclass(frozen=True, slots=True)
class HeadRhythm:
    """The rhythm of every single head, float32; the heads of the first layer come first."""

    slots: Slots
    span_BN: Tensor
    """Mean distance looked back, tokens."""
    waad_BNC: Tensor
    fai_BNC: Tensor

    def mean(self, values_BNC: Tensor, heads_BN: Tensor, length: int) -> Tensor:
        """BT: the mean over the heads that ``heads_BN`` names for each row."""
        weight_BN = heads_BN / heads_BN.sum(1, keepdim=True).clamp(min=1)
        return self.slots.spread((weight_BN.unsqueeze(1) @ values_BNC).squeeze(1), length)


@torch.no_grad()
def head_rhythm(
    model: CausalLM,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    *,
    layers: Sequence[int],
    window: int,
    horizon: tuple[int, int],
    map_elements: int = MAP_ELEMENTS,
) -> HeadRhythm:
    """Span, WAAD and FAI of each head of ``layers``; what they are is defined in ``roll_core/algorithms/rhythm.py``.

    Rows are padded on the right; ``mask_BT`` is 1 on response tokens. Nothing after the last of ``layers`` is run.
    """
    slots = Slots.of(mask_BT)
    found = [
        _read_layer(q_BHTE, k_BKTE, slots, window, horizon, map_elements)
        for q_BHTE, k_BKTE in _queries_keys(model, tokens_BT, layers)
    ]
    seen_BC = _band(slots.position_BC, slots, horizon, slots.filled_BC).sum(1).clamp(min=1)
    return HeadRhythm(
        slots,
        torch.cat([span_BH for span_BH, _, _ in found], 1),
        torch.cat([waad_BHC for _, waad_BHC, _ in found], 1),
        torch.cat([sum_BHC for _, _, sum_BHC in found], 1) / seen_BC.unsqueeze(1),
    )


@torch.no_grad()
def mean_maps(
    model: CausalLM, tokens_1T: Tensor, mask_1T: Tensor, *, layers: Sequence[int], heads_SN: Tensor
) -> Tensor:
    """SCT: for each set of heads of ``heads_SN`` the mean map of one episode, rows of its response tokens only."""
    slots, heads = Slots.of(mask_1T), model.config.heads
    weight_SN = heads_SN / heads_SN.sum(1, keepdim=True).clamp(min=1)
    total_SCT = torch.zeros(len(heads_SN), slots.position_BC.shape[1], tokens_1T.shape[1], device=tokens_1T.device)
    for i, (q_BHTE, k_BKTE) in enumerate(_queries_keys(model, tokens_1T, layers)):
        weight_SH = weight_SN[:, i * heads : (i + 1) * heads]
        for begin in range(0, total_SCT.shape[1], 64):
            map_BHcS = _map_rows(q_BHTE, k_BKTE, slots.position_BC[:, begin : begin + 64])
            part_ScS = torch.einsum("xh,hcs->xcs", weight_SH, map_BHcS[0])
            total_SCT[:, begin : begin + 64, : part_ScS.shape[2]] += part_ScS
    return total_SCT


def _queries_keys(model: CausalLM, tokens_BT: Tensor, layers: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """q_BHTE and k_BKTE of each of ``layers``, one at a time."""
    decoder = model.model
    x_BTD = decoder.embed_tokens(tokens_BT)
    cos_TE, sin_TE = rope_tables(model.config, tokens_BT.shape[1], tokens_BT.device)
    cos_T1E, sin_T1E = cos_TE.unsqueeze(1).to(x_BTD.dtype), sin_TE.unsqueeze(1).to(x_BTD.dtype)
    last = max(layers)
    for index, block in enumerate(decoder.layers[: last + 1]):
        if index in layers:
            assert isinstance(block, Block)
            yield block.self_attn.queries_keys(block.input_layernorm(x_BTD), cos_T1E, sin_T1E)
        if index < last:
            x_BTD = block(x_BTD, cos_T1E, sin_T1E)


def _map_rows(q_BHTE: Tensor, k_BKTE: Tensor, row_Bc: Tensor) -> Tensor:
    """A_BHcS of the rows ``row_Bc``: softmax over the positions up to each row's own; S ends with the last of them."""
    (batch, heads, _, size), groups = q_BHTE.shape, k_BKTE.shape[1]
    sources, rows = int(row_Bc.max()) + 1, row_Bc.shape[1]
    # gather, here and below, not take_along_dim: that first wraps negative indices, an eighth of the time.
    q_BHcE = q_BHTE.gather(2, row_Bc[:, None, :, None].expand(-1, heads, -1, size)) * size**-0.5
    q_BKgE = q_BHcE.reshape(batch, groups, heads // groups * rows, size)
    score_BHcS = (q_BKgE @ k_BKTE[:, :, :sources].transpose(2, 3)).float().view(batch, heads, rows, sources)
    later_BcS = torch.arange(sources, device=row_Bc.device) > row_Bc.unsqueeze(2)
    map_BHcS: Tensor = score_BHcS.masked_fill_(later_BcS.unsqueeze(1), -torch.inf).softmax(-1)
    return map_BHcS


def _read_layer(
    q_BHTE: Tensor, k_BKTE: Tensor, slots: Slots, window: int, horizon: tuple[int, int], map_elements: int
) -> tuple[Tensor, Tensor, Tensor]:
    """span_BH, waad_BHC and the sums under FAI, BHC, of one layer, in chunks of rows."""
    (batch, heads, length, _), (_, count) = q_BHTE.shape, slots.position_BC.shape
    chunk = max(1, map_elements // (batch * heads * length))
    waad, span_BH = [], q_BHTE.new_zeros(batch, heads, dtype=torch.float32)
    sum_BHC = q_BHTE.new_zeros(batch, heads, count, dtype=torch.float32)
    for begin in range(0, count, chunk):
        end = min(count, begin + chunk)
        row_Bc, real_Bc = slots.position_BC[:, begin:end], slots.filled_BC[:, begin:end]
        map_BHcS = _map_rows(q_BHTE, k_BKTE, row_Bc)
        looked_BHc = row_Bc.unsqueeze(1) - map_BHcS @ torch.arange(
            map_BHcS.shape[3], device=row_Bc.device, dtype=torch.float32
        )  # Σ A·(t − s) = t − Σ A·s, for rows sum to 1
        span_BH += (looked_BHc * real_Bc.unsqueeze(1)).sum(2)
        waad.append(_waad(map_BHcS, row_Bc, window) * real_Bc.unsqueeze(1))
        column_Be = slots.position_BC[:, :end].clamp(max=map_BHcS.shape[3] - 1)
        band_Bce = _band(row_Bc, slots, horizon, real_Bc)[:, :, :end]
        seen_BHce = map_BHcS.gather(3, column_Be[:, None, None].expand(-1, heads, end - begin, -1))
        sum_BHC[:, :, :end] += (seen_BHce * band_Bce.unsqueeze(1)).sum(2)
    return span_BH / slots.filled_BC.sum(1).clamp(min=1).unsqueeze(1), torch.cat(waad, 2), sum_BHC


def _waad(map_BHcS: Tensor, row_Bc: Tensor, window: int) -> Tensor:
    """Σ A·min(t − s, W) = W − Σ_{t−s<W} A·(W − (t − s)): of a row only its last W entries are looked at."""
    back_j = torch.arange(min(window, map_BHcS.shape[3]), device=row_Bc.device)
    source_Bcj = row_Bc.unsqueeze(2) - back_j
    weight_Bcj = (window - back_j) * (source_Bcj >= 0)
    near_BHcj = map_BHcS.gather(3, source_Bcj.clamp(min=0).unsqueeze(1).expand(-1, map_BHcS.shape[1], -1, -1))
    return window - (near_BHcj * weight_Bcj.unsqueeze(1)).sum(3)


def _band(row_Bc: Tensor, slots: Slots, horizon: tuple[int, int], real_Bc: Tensor) -> Tensor:
    """BcC: whether row t counts for the FAI of the response token s, i.e. lo ≤ t − s ≤ hi and both are real."""
    gap_BcC = row_Bc.unsqueeze(2) - slots.position_BC.unsqueeze(1)
    inside_BcC = (gap_BcC >= horizon[0]) & (gap_BcC <= horizon[1])
    return inside_BcC & real_Bc.unsqueeze(2) & slots.filled_BC.unsqueeze(1)
