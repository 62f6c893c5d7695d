"""Megatron's GPTModel as the network of :class:`~roll_core.models.ModelConfig`.

Invariants: the same function of the same weights as :class:`~roll_core.models.CausalLM`, up to rounding; only the
positions that :class:`Positions` names reach the language-model head; rows that are packed do not see each other; there
is no dropout, so no random numbers.

Shape legend: B rows, T tokens, N chosen positions, D hidden, H heads, E head dimension.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from roll_core.learners.config import LearnerConfig
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.mapping import HEAD_COPY, entries
from roll_core.models.qwen import ModelConfig, RMSNorm, rope_frequencies


class CausalAttention(MegatronModule):  # type: ignore[misc]
    """Core attention by torch's scaled dot product: no T × T map in memory where torch has a kernel that needs none.
    The signatures are those that Megatron's ``SelfAttention`` calls."""

    def __init__(self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **__: Any,
    ) -> Tensor:
        """TBHE, TBKE, TBKE → T, B, H·E; packed THE, TKE, TKE → THE, sequence by sequence."""
        if packed_seq_params is None:
            q_BHTE, k_BKTE, v_BKTE = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            return self._attended(q_BHTE, k_BKTE, v_BKTE).permute(2, 0, 1, 3).flatten(2)
        sizes = packed_seq_params.cu_seqlens_q.diff().tolist()
        pieces = (torch.split(x.transpose(0, 1).unsqueeze(0), sizes, 2) for x in (query, key, value))
        attended = [self._attended(*qkv) for qkv in zip(*pieces, strict=True)]
        return torch.cat(attended, 2)[0].transpose(0, 1)

    def _attended(self, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        group = q_BHTE.shape[1] // k_BKTE.shape[1]
        if group > 1:
            k_BKTE, v_BKTE = k_BKTE.repeat_interleave(group, 1), v_BKTE.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, scale=self.softmax_scale)


class Norm(RMSNorm):
    """The policy's own norm, made the way Megatron makes its. Megatron's for torch refuses sequence parallelism, for it
    does not say that its gradient is a sum over the tensor ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__(hidden_size, eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class Positions:
    """Which positions of the current micro-batch go through the head. Megatron's model has no argument for it, so the
    head asks when its turn comes: the widest matrix sees response tokens only. ``shared``: the tensor ranks share the
    positions out, so that the chosen ones have to be brought together first."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.chosen_N: Tensor | None = None
        """Indices into the flattened B × T; None: all."""

    def select(self, _module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of the head: T, B, D → N, 1, D."""
        if self.chosen_N is None:
            return None
        hidden_TBD, *rest = args
        if self.shared:  # the gradient that comes back is whole on every rank
            hidden_TBD = gather_from_sequence_parallel_region(hidden_TBD, tensor_parallel_output_grad=False)
        hidden_ND = hidden_TBD.transpose(0, 1).flatten(0, 1).index_select(0, self.chosen_N)
        return (hidden_ND.unsqueeze(1), *rest)


def transformer_config(config: ModelConfig, layout: Layout, learner: LearnerConfig, device: str) -> TransformerConfig:
    """Megatron's view of the model; ``activation_checkpointing`` keeps only the input of each layer and computes the
    rest again in the backward pass."""
    again = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    dtype = getattr(torch, learner.dtype)
    return TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.hidden,
        ffn_hidden_size=config.intermediate,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_heads,
        kv_channels=config.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=config.eps,
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=config.qkv_bias,
        qk_layernorm=config.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        use_cpu_initialization=device == "cpu",
        perform_initialization=False,  # weights are always given
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence,
        variable_seq_lengths=True,  # micro-batches have different widths
        cuda_graph_scope=[],
        moe_token_dispatcher_type="alltoall",  # there are no experts, but the default refuses different widths
        calculate_per_token_loss=True,  # losses of micro-batches and replicas add up; nothing is averaged
        **(again if learner.activation_checkpointing else {}),
    )


def build(config: ModelConfig, transformer: TransformerConfig, layout: Layout) -> tuple[GPTModel, Positions]:
    """This rank's share of the model, its weights not yet set. Needs Megatron's process groups."""
    first = parallel_state.is_pipeline_first_stage()
    last = parallel_state.is_pipeline_last_stage()
    model = GPTModel(
        config=transformer,
        transformer_layer_spec=_blocks(transformer),
        vocab_size=layout.padded_vocab(config.vocab),
        max_sequence_length=config.max_context,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=config.tie,
        position_embedding_type="rope",
        rotary_base=int(config.rope_theta),
    )
    # Ours, so that a stretched embedding (Llama 3) and a base that is no whole number come out the same.
    inv_freq = model.rotary_pos_emb.inv_freq
    model.rotary_pos_emb.inv_freq = rope_frequencies(config).to(inv_freq.device)
    _mark_shards(model, config, layout)
    model.to(transformer.params_dtype)
    positions = Positions(shared=layout.sequence)
    if last:
        head = model.output_layer
        if layout.sequence:  # it is given whole what was chosen
            head.sequence_parallel, head.allreduce_dgrad = False, True
        model.output_layer.register_forward_pre_hook(positions.select)
    return model, positions


def _blocks(transformer: TransformerConfig) -> TransformerBlockSubmodules:
    """Megatron's own layers, but for attention and norms."""
    layer = get_gpt_layer_local_spec(qk_layernorm=transformer.qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    attention = parts.self_attention.submodules
    attention.core_attention = ModuleSpec(module=_core_attention(transformer))
    if transformer.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    return TransformerBlockSubmodules([layer] * get_num_layers_to_build(transformer), layer_norm=Norm)


def _core_attention(transformer: TransformerConfig) -> type:
    """Transformer Engine's kernel, which takes packed rows in one call, where there is one for this precision."""
    fused = torch.cuda.is_available() and transformer.params_dtype == torch.bfloat16
    if fused and importlib.util.find_spec("transformer_engine"):
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        found: type = TEDotProductAttention
        return found
    return CausalAttention


def _mark_shards(model: GPTModel, config: ModelConfig, layout: Layout) -> None:
    """Tell Megatron which parameters are shards. Otherwise it would do so where it initialises them, and of those that
    it takes for copies only the first rank's gradient counts in the norm."""
    columns = {entry.name: entry.kind == "columns" for entry in entries(config, layout) if entry.kind != "whole"}
    for name, parameter in model.named_parameters():
        if (name in columns or name == HEAD_COPY) and not hasattr(parameter, "tensor_model_parallel"):  # biases have it
            dim = 1 if columns.get(name) else 0
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)
