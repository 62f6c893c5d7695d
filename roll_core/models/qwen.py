"""The policy network: Qwen3 (and Qwen2 and Llama, by switches) in plain torch, as the learner trains it.

Invariants: parameters carry Hugging Face's names and shapes; rows are padded on the right, so that causal attention
alone keeps padding out of every real position and no mask is needed.

Shape legend: B rows, T tokens, D hidden, V vocabulary, H query heads, K key/value heads, E head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from roll_core.models.packing import Packing


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's stretching of the rotary embedding (rope_type ``llama3``): wavelengths beyond the original context are
    multiplied by ``factor``, short ones stay, and in between it goes smoothly from one to the other."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor and self.original_context >= 1):
            raise ValueError(f"expected factor >= 1 and 0 < low_freq_factor < high_freq_factor, found {self}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the network. ``qk_norm`` is Qwen3's, ``qkv_bias`` Qwen2's; Llama has neither."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    tie: bool = True
    """Whether the language-model head shares the embedding matrix."""
    max_context: int = 2048
    """Longest sequence, prompt and generation together, in tokens."""
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs")
        if min(self.vocab, self.hidden, self.layers, self.kv_heads, self.intermediate, self.max_context) < 1:
            raise ValueError(f"every size must be at least 1: {self}")


class _RMSNormFunction(torch.autograd.Function):
    """y = x / sqrt(mean(x²) + eps) · w with its own backward.

    Autograd's composite writes six intermediates of x's size; on CPU that made norms a third of a training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def]
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = size**0.5 / torch.hypot(norm, torch.full_like(norm, (size * eps) ** 0.5))
        ctx.save_for_backward(x, weight_D, scale)
        out: Tensor = (x * scale).mul_(weight_D)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        x, weight_D, scale = ctx.saved_tensors
        unit = x * scale
        grad_weight_D = (grad * unit).flatten(0, -2).sum(0)
        grad_unit = grad * weight_D
        inner = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).div_(-x.shape[-1])
        return grad_unit.addcmul_(unit, inner).mul_(scale), grad_weight_D, None


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):  # means of squares lose too much there
            return self._normed(x.float(), self.weight.float()).to(x.dtype)
        return self._normed(x, self.weight)

    def _normed(self, x: Tensor, weight_D: Tensor) -> Tensor:
        out: Tensor = _RMSNormFunction.apply(x, weight_D, self.eps)  # type: ignore[no-untyped-call]
        return out


def rope_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each rotated pair, (E/2,), float32."""
    exponent_E2 = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequency_E2: Tensor = config.rope_theta**-exponent_E2
    scaling = config.rope_scaling
    if scaling is None:
        return frequency_E2
    turns_E2 = scaling.original_context * frequency_E2 / (2 * torch.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_E2 = ((turns_E2 - low) / (high - low)).clamp(0, 1)  # 1: as it was, 0: stretched
    return frequency_E2 * (kept_E2 + (1 - kept_E2) / scaling.factor)


def rope_tables(config: ModelConfig, length: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """cos_TE and sin_TE of the rotary embedding (half-split layout, as in Hugging Face's models), float32."""
    frequency_E2 = rope_frequencies(config, device)
    angle_TE2 = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency_E2)
    angle_TE = torch.cat((angle_TE2, angle_TE2), -1)
    return angle_TE.cos(), angle_TE.sin()


def _rotate(x_BTHE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
    left, right = x_BTHE.chunk(2, -1)
    return x_BTHE * cos_T1E + torch.cat((-right, left), -1) * sin_T1E


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.eps) if c.qk_norm else nn.Identity()

    def queries_keys(self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> tuple[Tensor, Tensor]:
        """q_BHTE and k_BKTE, normalised and rotated; query head h belongs to key head h // (H / K)."""
        heads = (*x_BTD.shape[:2], -1, self.config.head_dim)
        q_BHTE = _rotate(self.q_norm(self.q_proj(x_BTD).view(heads)), cos_T1E, sin_T1E).transpose(1, 2)
        k_BKTE = _rotate(self.k_norm(self.k_proj(x_BTD).view(heads)), cos_T1E, sin_T1E).transpose(1, 2)
        return q_BHTE, k_BKTE

    def forward(
        self,
        x_BTD: Tensor,
        cos_T1E: Tensor,
        sin_T1E: Tensor,
        chosen_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        q_BHTE, k_BKTE = self.queries_keys(x_BTD, cos_T1E, sin_T1E)
        v_BKTE = self.v_proj(x_BTD).view(batch, length, -1, self.config.head_dim).transpose(1, 2)
        if packing is not None:
            q_BHTE, k_BKTE, v_BKTE = (
                packing.spread(x.transpose(1, 2)).transpose(1, 2) for x in (q_BHTE, k_BKTE, v_BKTE)
            )
        group = self.config.heads // self.config.kv_heads
        if group > 1:
            k_BKTE, v_BKTE = k_BKTE.repeat_interleave(group, 1), v_BKTE.repeat_interleave(group, 1)
        found = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True).transpose(1, 2).flatten(2)
        if chosen_N is not None:
            found = found.flatten(0, 1).index_select(0, chosen_N)
        elif packing is not None:
            found = packing.gather(found)
        out: Tensor = self.o_proj(found)
        return out


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class Block(nn.Module):
    recompute = False
    """Whether a pass keeps nothing but the block's input and computes the rest again on the way back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden, config.eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.eps)

    def forward(
        self,
        x_BTD: Tensor,
        cos_T1E: Tensor,
        sin_T1E: Tensor,
        chosen_N: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """BTD, or ND at the ``chosen_N`` positions of the flattened batch, which then alone go on after attention.

        With ``packing`` x is 1UD, the tables are of those positions, and so is what is returned without ``chosen_N``.
        """
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x_BTD, cos_T1E, sin_T1E, chosen_N, packing, use_reentrant=False)
            return out
        return self._forward(x_BTD, cos_T1E, sin_T1E, chosen_N, packing)

    def _forward(
        self, x_BTD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, chosen_N: Tensor | None, packing: Packing | None
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_BTD), cos_T1E, sin_T1E, chosen_N, packing)
        if chosen_N is not None:
            place_N = chosen_N if packing is None else packing.place_M[chosen_N]
            x_BTD = x_BTD.flatten(0, 1).index_select(0, place_N)
        x = attended + x_BTD
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)

    def forward(self, tokens_BT: Tensor, chosen_N: Tensor | None = None) -> Tensor:
        packing = Packing.of(tokens_BT, chosen_N)
        length = tokens_BT.shape[1]
        cos_TE, sin_TE = rope_tables(self.config, length, tokens_BT.device)
        if packing is not None:
            tokens_BT = packing.gather(tokens_BT)
            cos_TE, sin_TE = (table.index_select(0, packing.own_U % length) for table in (cos_TE, sin_TE))
        x_BTD = self.embed_tokens(tokens_BT)
        cos_T1E, sin_T1E = cos_TE.unsqueeze(1).to(x_BTD.dtype), sin_TE.unsqueeze(1).to(x_BTD.dtype)
        for layer in self.layers[:-1]:
            x_BTD = layer(x_BTD, cos_T1E, sin_T1E, None, packing)
        out: Tensor = self.norm(self.layers[-1](x_BTD, cos_T1E, sin_T1E, chosen_N, packing))
        return out


class CausalLM(nn.Module):
    """Decoder and head. ``hidden`` stops before the head, so that a learner can take few positions through it.

    New parameters are drawn from N(0, 0.02²) as Hugging Face does, from ``seed`` alone; with None they are left to
    whoever fills them.
    """

    def __init__(self, config: ModelConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie:
            self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)
        if seed is None:
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith(".bias"):
                    parameter.zero_()
                elif parameter.dim() > 1:
                    parameter.normal_(0.0, 0.02, generator=generator)

    @property
    def head_VD(self) -> Tensor:
        """The head's matrix: the embedding itself where they are tied."""
        return self.model.embed_tokens.weight if self.config.tie else self.lm_head.weight

    def hidden(self, tokens_BT: Tensor, chosen_N: Tensor | None = None) -> Tensor:
        """Normalised last hidden state, BTD; or ND of ``chosen_N``, indices into the flattened BT.

        Of the last layer the other positions need only keys and values: with 15 % chosen and four layers that saves
        an eighth of the time. What rows begin with alike is computed once (:mod:`roll_core.models.packing`).
        """
        out: Tensor = self.model(tokens_BT, chosen_N)
        return out

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits BTV; position t predicts token t + 1."""
        return F.linear(self.hidden(tokens_BT), self.head_VD)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every parameter, in the network's order, from the config alone: to make the network, even
    without memory, torch loads its compiler for two seconds."""
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    block: dict[str, tuple[int, ...]] = {}
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        block[f"self_attn.{name}.weight"] = (width, c.hidden)
        if c.qkv_bias:
            block[f"self_attn.{name}.bias"] = (width,)
    block["self_attn.o_proj.weight"] = (c.hidden, queries)
    if c.qk_norm:
        block |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    block |= {f"mlp.{name}.weight": (c.intermediate, c.hidden) for name in ("gate_proj", "up_proj")}
    block["mlp.down_proj.weight"] = (c.hidden, c.intermediate)
    block |= {"input_layernorm.weight": (c.hidden,), "post_attention_layernorm.weight": (c.hidden,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab, c.hidden)}
    for layer in range(c.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (c.hidden,)
    if not c.tie:
        shapes["lm_head.weight"] = (c.vocab, c.hidden)
    return shapes
