"""Megatron's GPTModel as the network of :class:`~roll_core.models.ModelConfig`.

Invariants: the same function of the same weights as :class:`~roll_core.models.CausalLM`, up to rounding; only the
positions that :class:`Positions` names reach the language-model head; there is no dropout, so no random numbers.

Shape legend: B rows, T tokens, N chosen positions, D hidden, H heads, E head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.mapping import HEAD_COPY, entries
from roll_core.models.qwen import ModelConfig, rope_frequencies


class CausalAttention(MegatronModule):  # type: ignore[misc]
    """Core attention by torch's scaled dot product: no T × T map in memory where torch has a kernel that needs none.
    The signatures are those that Megatron's ``SelfAttention`` calls."""

    def __init__(self, config: TransformerConfig, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query_TBHE: Tensor, key_TBKE: Tensor, value_TBKE: Tensor, *_: Any, **__: Any) -> Tensor:
        q_BHTE, k_BKTE, v_BKTE = (x.permute(1, 2, 0, 3) for x in (query_TBHE, key_TBKE, value_TBKE))
        group = q_BHTE.shape[1] // k_BKTE.shape[1]
        if group > 1:
            k_BKTE, v_BKTE = k_BKTE.repeat_interleave(group, 1), v_BKTE.repeat_interleave(group, 1)
        out_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, scale=self.softmax_scale)
        return out_BHTE.permute(2, 0, 1, 3).flatten(2)


class Positions:
    """Which positions of the current micro-batch go through the head. Megatron's model has no argument for it, so the
    head asks when its turn comes: the widest matrix sees response tokens only."""

    def __init__(self) -> None:
        self.chosen_N: Tensor | None = None
        """Indices into the flattened B × T; None: all."""

    def select(self, _module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of the head: T, B, D → N, 1, D."""
        if self.chosen_N is None:
            return None
        hidden_TBD, *rest = args
        hidden_ND = hidden_TBD.transpose(0, 1).flatten(0, 1).index_select(0, self.chosen_N)
        return (hidden_ND.unsqueeze(1), *rest)


def transformer_config(
    config: ModelConfig, layout: Layout, *, recompute: bool, device: torch.device
) -> TransformerConfig:
    """``recompute``: keep only the input of each layer and compute the rest again in the backward pass."""
    again = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
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
        use_cpu_initialization=device.type == "cpu",
        perform_initialization=False,  # weights are always given
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        variable_seq_lengths=True,  # micro-batches have different widths
        cuda_graph_scope=[],
        moe_token_dispatcher_type="alltoall",  # there are no experts, but the default refuses different widths
        calculate_per_token_loss=True,  # losses of micro-batches and replicas add up; nothing is averaged
        **(again if recompute else {}),
    )


def build(config: ModelConfig, transformer: TransformerConfig, layout: Layout) -> tuple[GPTModel, Positions]:
    """This rank's share of the model, its weights not yet set. Needs Megatron's process groups."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_norm, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = ModuleSpec(module=CausalAttention)
    first = parallel_state.is_pipeline_first_stage()
    last = parallel_state.is_pipeline_last_stage()
    model = GPTModel(
        config=transformer,
        transformer_layer_spec=spec,
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
    positions = Positions()
    if last:
        model.output_layer.register_forward_pre_hook(positions.select)
    return model, positions


def _mark_shards(model: GPTModel, config: ModelConfig, layout: Layout) -> None:
    """Tell Megatron which parameters are shards. Otherwise it would do so where it initialises them, and of those that
    it takes for copies only the first rank's gradient counts in the norm."""
    columns = {entry.name: entry.kind == "columns" for entry in entries(config, layout) if entry.kind != "whole"}
    for name, parameter in model.named_parameters():
        if (name in columns or name == HEAD_COPY) and not hasattr(parameter, "tensor_model_parallel"):  # biases have it
            dim = 1 if columns.get(name) else 0
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)
