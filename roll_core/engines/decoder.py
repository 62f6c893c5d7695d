"""The network as an engine runs it: fused weights, a KV cache of fixed rows, one forward pass for many sequences.

Invariants: a pass computes tokens of any number of sequences packed one after another, without padding; row ``slot`` of
the cache holds one sequence from position 0 on; what lies beyond a sequence's length is finite and never attended to.

Why it looks as it does (measured on CPU at hidden 128, batch 32): at these sizes a pass is bounded by the number of
operators and by reading the cache, so norm weights are folded into the following matrix, Q, K and V (gate and up) are
one product, heads are permuted so that rotary embedding is one complex product, query heads of a group share one read
of the cache, and attention reads only the needed length of only the rows in use.

Shape legend: N packed tokens, D hidden, V vocabulary, H query heads, K key/value heads, G = H/K, E head dimension,
S slots, T positions, W written tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roll_core.engines.base import check_fit
from roll_core.models.qwen import ModelConfig, parameter_shapes, rope_frequencies

_CALL_COST = 1.5e4
"""What one more attention call costs, in elements of keys that could be read meanwhile: 21 µs, with their values 1.4 ns
each (float32, 32 rows of 12 and of 400 tokens, one by one and in one call, one of two busy cores)."""


@dataclass(slots=True)  # not frozen: thousands are made a second, and that would double what one costs
class Piece:
    """The part of one sequence that a pass computes: ``token_ids`` at positions ``start``… of row ``slot``."""

    slot: int
    start: int
    token_ids: Sequence[int]
    shared: list[tuple[int, int]] = field(default_factory=list)
    """Other rows, and how many of these tokens they begin with, too, after the same ``start`` tokens."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Single-token pieces ``begin`` to ``end``, attended to in one call over ``rows`` slots from ``slot`` on."""

    begin: int
    end: int
    slot: int
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the pieces of a run with gaps stand among its rows: ``piece_R`` of each row (its neighbour's in a gap),
    ``row_n`` of each piece."""

    piece_R: Tensor
    row_n: Tensor


@dataclass(frozen=True, slots=True)
class _Writes:
    """Where keys and values go: of token ``source_W`` (None: of each in turn) to the rows ``index_WK`` of a cache seen
    as (S·K·T, E)."""

    source_W: Tensor | None
    index_WK: Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv_DX: Tensor
    qkv_bias_X: Tensor | None
    qk_scale: Tensor  # (H + K, E), or a scalar per head broadcast over E
    out_XD: Tensor
    gate_up_DX: Tensor
    down_XD: Tensor


@dataclass(frozen=True, slots=True)
class _Fused:
    embedding_VD: Tensor
    head_DV: Tensor
    norm_D: Tensor
    layers: tuple[_Layer, ...]


def _interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows from (first halves, second halves) to pairs, as a complex product wants them.

    Scores do not change: queries and keys are permuted alike.
    """
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _fuse_layer(config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> _Layer:
    c = config
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    first, second = tensors[f"{prefix}input_layernorm.weight"], tensors[f"{prefix}post_attention_layernorm.weight"]
    q, k = (_interleave(tensors[f"{attention}{n}_proj.weight"], c.head_dim) for n in "qk")
    qkv = torch.cat((q, k, tensors[f"{attention}v_proj.weight"])) * first
    bias = None
    if c.qkv_bias:
        q, k = (_interleave(tensors[f"{attention}{n}_proj.bias"], c.head_dim) for n in "qk")
        bias = torch.cat((q, k, tensors[f"{attention}v_proj.bias"]))
    scale = torch.ones(c.heads + c.kv_heads, c.head_dim, dtype=first.dtype, device=first.device)
    if c.qk_norm:
        scale[: c.heads] = _interleave(tensors[f"{attention}q_norm.weight"], c.head_dim)
        scale[c.heads :] = _interleave(tensors[f"{attention}k_norm.weight"], c.head_dim)
        scale *= c.head_dim**0.5  # the norm divides by the length of the vector, not by its root mean square
    scale[: c.heads] *= c.head_dim**-0.5
    gate_up = torch.cat((tensors[f"{mlp}gate_proj.weight"], tensors[f"{mlp}up_proj.weight"])) * second
    return _Layer(
        qkv_DX=(qkv * c.hidden**0.5).t().contiguous(),
        qkv_bias_X=bias,
        qk_scale=scale,
        out_XD=tensors[f"{attention}o_proj.weight"].t().contiguous(),
        gate_up_DX=(gate_up * c.hidden**0.5).t().contiguous(),
        down_XD=tensors[f"{mlp}down_proj.weight"].t().contiguous(),
    )


def _unit(x: Tensor, floor: float) -> Tensor:
    """x / sqrt(|x|² + floor²): a root-mean-square norm up to the factor folded into the next matrix."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x / torch.hypot(norm, norm.new_full((), floor)).to(x.dtype)


class Decoder:
    def __init__(
        self, config: ModelConfig, *, slots: int, max_context: int, device: str = "cpu", dtype: torch.dtype
    ) -> None:
        c = self.config = config
        self.slots, self.max_context = slots, max_context
        self._device, self._dtype = torch.device(device), dtype
        shape = (slots, c.kv_heads, max_context, c.head_dim)
        # Zeros, not empty: a masked score may be anything finite, but NaN times probability 0 is NaN.
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(c.layers)]
        angle = torch.outer(torch.arange(max_context, dtype=torch.float32), rope_frequencies(c))
        self._rotation = torch.polar(torch.ones_like(angle), angle).unsqueeze(1).to(device)
        self._position_T = torch.arange(max_context, device=device)
        self._floor = (c.hidden * c.eps) ** 0.5
        self._head_floor = (c.head_dim * c.eps) ** 0.5
        self._shapes = parameter_shapes(config)
        self._fused: _Fused | None = None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take new weights, copied. ValueError (and the old ones stay) when a name or a shape does not fit."""
        check_fit(self._shapes, tensors)
        own = {n: tensors[n].detach().to(self._device, self._dtype, copy=True) for n in self._shapes}
        embedding_VD = own["model.embed_tokens.weight"]
        self._fused = _Fused(
            embedding_VD=embedding_VD,
            head_DV=(embedding_VD if self.config.tie else own["lm_head.weight"]).t(),
            norm_D=own["model.norm.weight"] * self.config.hidden**0.5,
            layers=tuple(_fuse_layer(self.config, own, f"model.layers.{i}.") for i in range(self.config.layers)),
        )

    def forward(self, pieces: Sequence[Piece], wanted: Sequence[int]) -> Tensor:
        """Compute ``pieces`` and write their keys and values. Single-token pieces come first, ordered by slot.

        Returns the logits (len(wanted), V) that follow the last token of each piece in ``wanted`` (indices).
        """
        fused = self._fused
        if fused is None:
            raise RuntimeError("the decoder has no weights; call load first")
        sizes = np.array([len(p.token_ids) for p in pieces])
        ends = sizes.cumsum()
        begins = ends - sizes
        slot_N = np.repeat(np.array([p.slot for p in pieces]), sizes)
        position_N = np.arange(ends[-1]) + np.repeat(np.array([p.start for p in pieces]) - begins, sizes)
        singles = int((sizes == 1).argmin()) if sizes.max() > 1 else len(pieces)
        runs, spans = self._plan(pieces[:singles]), pieces[singles:]
        places = self._places(runs, slot_N)
        run_masks = self._run_masks(runs, places, position_N)
        span_masks = [self._span_mask(p) for p in spans]
        writes = self._writes(pieces, begins, slot_N, position_N)

        token_N = torch.from_numpy(np.concatenate([p.token_ids for p in pieces]).astype(np.int64)).to(self._device)
        rotation_N = self._rotation[torch.from_numpy(position_N).to(self._device)]
        x_ND = F.embedding(token_N, fused.embedding_VD)
        for i, layer in enumerate(fused.layers):
            q_NHE, attended_NKGE = self._project(i, layer, x_ND, rotation_N, writes)
            self._attend_runs(i, runs, places, run_masks, q_NHE, attended_NKGE)
            self._attend_spans(i, spans, span_masks, singles, q_NHE, attended_NKGE)
            x_ND = torch.addmm(x_ND, attended_NKGE.view(len(token_N), -1), layer.out_XD)
            gate, up = (_unit(x_ND, self._floor) @ layer.gate_up_DX).chunk(2, -1)
            x_ND = torch.addmm(x_ND, F.silu(gate).mul_(up), layer.down_XD)
        last = torch.from_numpy(ends[list(wanted)] - 1).to(self._device)
        return (_unit(x_ND[last], self._floor) * fused.norm_D) @ fused.head_DV

    def _writes(
        self, pieces: Sequence[Piece], begins: np.ndarray, slot_N: np.ndarray, position_N: np.ndarray
    ) -> _Writes:
        copies = [
            (np.arange(begin, begin + count), slot)
            for piece, begin in zip(pieces, begins, strict=True)
            for slot, count in piece.shared
        ]
        source_W = None
        if copies:
            source = np.concatenate([np.arange(len(slot_N)), *(tokens for tokens, _ in copies)])
            slot_N = np.concatenate([slot_N, *(np.full(len(tokens), slot) for tokens, slot in copies)])
            position_N = position_N[source]
            source_W = torch.from_numpy(source).to(self._device)
        index_WK = (slot_N[:, None] * self.config.kv_heads + np.arange(self.config.kv_heads)) * self.max_context
        return _Writes(source_W, torch.from_numpy((index_WK + position_N[:, None]).ravel()).to(self._device))

    def _plan(self, singles: Sequence[Piece]) -> list[_Run]:
        """Group pieces into runs: a longer one, or one with gaps, reads more than it needs; a new one costs a call."""
        bearable = _CALL_COST / (self.config.kv_heads * self.config.head_dim)
        runs: list[_Run] = []
        for i, piece in enumerate(singles):
            length = piece.start + 1
            if runs:
                last = runs[-1]
                rows, longest = piece.slot + 1 - last.slot, max(last.length, length)
                if rows * longest - last.rows * last.length - length < bearable:
                    runs[-1] = _Run(last.begin, i + 1, last.slot, rows, longest)
                    continue
            runs.append(_Run(i, i + 1, piece.slot, 1, length))
        return runs

    def _places(self, runs: Sequence[_Run], slot_N: np.ndarray) -> list[_Place | None]:
        """None for a run without gaps."""
        places: list[_Place | None] = []
        for run in runs:
            if run.rows == run.end - run.begin:
                places.append(None)
                continue
            row_n = slot_N[run.begin : run.end] - run.slot
            piece_R = run.begin + np.searchsorted(row_n, np.arange(run.rows))
            places.append(_Place(*(torch.from_numpy(a).to(self._device) for a in (piece_R, row_n))))
        return places

    def _run_masks(
        self, runs: Sequence[_Run], places: Sequence[_Place | None], position_N: np.ndarray
    ) -> list[Tensor | None]:
        masks: list[Tensor | None] = []
        for run, place in zip(runs, places, strict=True):
            position = torch.from_numpy(position_N[run.begin : run.end]).to(self._device)
            if position_N[run.begin : run.end].min() + 1 == run.length:
                masks.append(None)
                continue
            if place is not None:
                position = position[place.piece_R - run.begin]
            hidden = self._position_T[: run.length] > position.unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)
            masks.append(mask[:, None, None, :])
        return masks

    def _span_mask(self, piece: Piece) -> Tensor:
        """Causal mask (G·n, start + n) of a piece whose queries are stacked group by group."""
        size, end = len(piece.token_ids), piece.start + len(piece.token_ids)
        hidden = self._position_T[:end] > self._position_T[piece.start : end].unsqueeze(1)
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        return mask.repeat(self.config.heads // self.config.kv_heads, 1).view(-1, size, end).flatten(0, 1)

    def _project(
        self, index: int, layer: _Layer, x_ND: Tensor, rotation_N: Tensor, writes: _Writes
    ) -> tuple[Tensor, Tensor]:
        """Queries (NHE, scaled and rotated) and room for what they find (NKGE); keys and values go into the cache."""
        c = self.config
        h_ND = _unit(x_ND, self._floor)
        qkv = h_ND @ layer.qkv_DX if layer.qkv_bias_X is None else torch.addmm(layer.qkv_bias_X, h_ND, layer.qkv_DX)
        count, turned = len(x_ND), c.heads + c.kv_heads
        qk = qkv[:, : turned * c.head_dim].view(count, turned, c.head_dim)
        qk = (_unit(qk, self._head_floor) if c.qk_norm else qk) * layer.qk_scale
        pairs = torch.view_as_complex(qk.float().view(count, turned, -1, 2))
        qk = torch.view_as_real(pairs * rotation_N).flatten(-2).to(x_ND.dtype)
        keys, values = qk[:, c.heads :], qkv[:, turned * c.head_dim :]
        for cache, new in ((self._keys[index], keys), (self._values[index], values)):
            written = new if writes.source_W is None else new.index_select(0, writes.source_W)
            cache.view(-1, c.head_dim).index_copy_(0, writes.index_WK, written.reshape(-1, c.head_dim))
        return qk[:, : c.heads], x_ND.new_empty((count, c.kv_heads, c.heads // c.kv_heads, c.head_dim))

    def _attend_runs(
        self,
        index: int,
        runs: Sequence[_Run],
        places: Sequence[_Place | None],
        masks: Sequence[Tensor | None],
        q_NHE: Tensor,
        out_NKGE: Tensor,
    ) -> None:
        keys, values, kv_heads = self._keys[index], self._values[index], self.config.kv_heads
        for run, place, mask in zip(runs, places, masks, strict=True):
            q_RHE = q_NHE[run.begin : run.end] if place is None else q_NHE.index_select(0, place.piece_R)
            found_RKGE = F.scaled_dot_product_attention(
                q_RHE.view(run.rows, kv_heads, -1, self.config.head_dim),
                keys[run.slot : run.slot + run.rows, :, : run.length],
                values[run.slot : run.slot + run.rows, :, : run.length],
                attn_mask=mask,
                scale=1.0,
            )
            out_NKGE[run.begin : run.end] = found_RKGE if place is None else found_RKGE.index_select(0, place.row_n)

    def _attend_spans(
        self, index: int, spans: Sequence[Piece], masks: Sequence[Tensor], begin: int, q_NHE: Tensor, out_NKGE: Tensor
    ) -> None:
        kv_heads = self.config.kv_heads
        for piece, mask in zip(spans, masks, strict=True):
            size, length = len(piece.token_ids), piece.start + len(piece.token_ids)
            q_KGnE = q_NHE[begin : begin + size].view(size, kv_heads, -1, self.config.head_dim).permute(1, 2, 0, 3)
            found = F.scaled_dot_product_attention(
                q_KGnE.flatten(1, 2).unsqueeze(0),
                self._keys[index][piece.slot : piece.slot + 1, :, :length],
                self._values[index][piece.slot : piece.slot + 1, :, :length],
                attn_mask=mask,
                scale=1.0,
            )
            out_NKGE[begin : begin + size] = found.view(kv_heads, -1, size, self.config.head_dim).permute(2, 0, 1, 3)
            begin += size
