"""How much memory the roles need, from the recipe and the model's shape alone: an estimate before anything starts.

Counted: parameters, gradients and moments; the activations that a backward pass keeps; logits of one chunk; weights and
KV cache of engines. Not counted: the CUDA context (about half a GiB), fragmentation, buffers of collectives. What is
counted is compared with measured allocations of the CPU in the tests, except activations under Megatron; on GPUs
nothing has been measured yet.

Sources: 16 bytes a parameter for float32 training by Adam (Rajbhandari et al., ZeRO, arXiv 1910.02054, §3.1); under
Megatron in bfloat16, whose gradients are summed in float32, 18, or 6 + 12/d where d replicas share the optimizer out
(Megatron-Core's guide to its distributed optimizer); the activations of a block as in Korthikanti et al. (arXiv
2205.05198, §4), without the attention matrix, which the fused kernel does not keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roll_core.cluster.shape import new_shape
from roll_core.config import Recipe
from roll_core.learners.megatron.layout import Layout
from roll_core.learners.megatron.mapping import entries
from roll_core.models.qwen import ModelConfig, parameter_shapes

_FLOAT32 = 4
_HEAD_TOKENS = 4096
"""Positions whose logits exist at once; ``LearnerConfig.head_tokens``."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on each device of one role, by what they are for."""

    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def parameter_count(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else _FLOAT32


def trained_count(config: ModelConfig, lora_rank: int) -> int:
    """Parameters that have gradients: all, or those of the adapters."""
    if not lora_rank:
        return parameter_count(config)
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = (config.hidden + queries) * 2 + (config.hidden + keys) * 2
    feed_forward = (config.hidden + config.intermediate) * 3
    return config.layers * lora_rank * (attention + feed_forward)


def megatron_layout(recipe: Recipe) -> Layout:
    learner = recipe.learner
    tensor, pipeline = learner.tensor_parallel, learner.pipeline_parallel
    return Layout(tensor, pipeline, learner.processes // (tensor * pipeline), learner.sequence_parallel)


def stage_count(config: ModelConfig, layout: Layout) -> int:
    """Parameters in one process of Megatron's largest stage. Raises RecipeError when the model cannot be cut so."""
    layout.check(config)
    shapes = parameter_shapes(config)
    vocabulary = layout.padded_vocab(config.vocab) * config.hidden // layout.tensor
    stages = [0] * layout.pipeline
    for entry in entries(config, layout):
        size = sum(math.prod(shapes[source]) for source in entry.sources)
        shard = size if entry.kind == "whole" else size // layout.tensor
        stages[entry.stage] += vocabulary if entry.kind == "vocabulary" else shard
    if config.tie and layout.pipeline > 1:
        stages[-1] += vocabulary  # a copy, for the head
    return max(stages)


def learner_need(recipe: Recipe, config: ModelConfig) -> Need:
    """Of each of the learner's processes."""
    return _megatron_need(recipe, config) if recipe.learner.kind == "megatron" else _torch_need(recipe, config)


def _megatron_need(recipe: Recipe, config: ModelConfig) -> Need:
    """Parameters as the passes have them, gradients in float32, and what the optimizer keeps: two moments, and under
    bfloat16 the parameters in float32, shared out over the replicas or one copy each."""
    learner, layout = recipe.learner, megatron_layout(recipe)
    count, width = stage_count(config, layout), bytes_of(learner.dtype)
    kept = -(-count // layout.data) if learner.distributed_optimizer else count
    parts = {
        "parameters": count * width,
        "gradients": count * _FLOAT32,
        "float32 parameters": kept * _FLOAT32 if learner.dtype == "bfloat16" else 0,
        "moments": 2 * kept * _FLOAT32,
        "activations": _megatron_activations(recipe, config, layout),
    }
    if _has_reference(recipe):
        parts["reference"] = count * width
    return Need(parts)


def _torch_need(recipe: Recipe, config: ModelConfig) -> Need:
    learner = recipe.learner
    count, trained = parameter_count(config), trained_count(config, learner.lora_rank)
    share = learner.processes
    moments = 2 if learner.optimizer == "adamw" else 1
    adapters = trained if learner.lora_rank else 0
    parts = {
        "parameters": (count + adapters) * _FLOAT32 // share,
        "gradients": trained * _FLOAT32 // share,
        "moments": trained * moments * _FLOAT32 // share,
        "activations": activation_bytes(recipe, config),
    }
    if _has_reference(recipe):
        parts["reference"] = count * _FLOAT32 // share
    if learner.kind == "fsdp" and share > 1:  # gathered: a block, the next one, and the embedding
        vocabulary = config.vocab * config.hidden * (1 if config.tie else 2)
        parts["gathered"] = (2 * (count - vocabulary) // config.layers + vocabulary) * bytes_of(learner.dtype)
    elif learner.dtype == "bfloat16":
        parts["rounded parameters"] = count * 2
    return Need(parts)


def _has_reference(recipe: Recipe) -> bool:
    return bool(recipe.algorithm.kl_coef) and recipe.placement.reference == "learner"


def activation_bytes(recipe: Recipe, config: ModelConfig) -> int:
    """What a forward pass keeps for the backward pass, at the largest micro-batch."""
    learner = recipe.learner
    tokens = _tokens(recipe, config)
    outside, inside = _block_widths(config)
    block = tokens * (outside + inside) * bytes_of(learner.dtype)
    kept = tokens * config.hidden * _FLOAT32 * config.layers
    blocks = block + kept if learner.activation_checkpointing else block * config.layers
    logits = 3 * min(tokens, _HEAD_TOKENS) * config.vocab * _FLOAT32
    return blocks + logits


def _megatron_activations(recipe: Recipe, config: ModelConfig, layout: Layout) -> int:
    """The same of one process. A stage of ``1/p`` of the layers keeps up to ``p`` micro-batches, so stages spare
    nothing; tensor ranks share what is inside attention and feed-forward, with sequence parallelism also the rest. All
    positions go through the head at once, and its backward pass holds six tensors as large as the logits."""
    learner = recipe.learner
    tokens, width = _tokens(recipe, config), bytes_of(learner.dtype)
    outside, inside = _block_widths(config)
    alone = layout.tensor if layout.sequence else 1
    block = tokens * (outside // alone + inside // layout.tensor) * width
    kept = tokens * config.hidden // alone * width * config.layers
    blocks = block + kept if learner.activation_checkpointing else block * config.layers
    logits = 6 * tokens * layout.padded_vocab(config.vocab) // layout.tensor * _FLOAT32
    return blocks + logits


def _tokens(recipe: Recipe, config: ModelConfig) -> int:
    return max(recipe.learner.micro_batch_tokens, config.max_context)


def _block_widths(config: ModelConfig) -> tuple[int, int]:
    """Numbers kept per position: outside and inside attention and feed-forward."""
    attention = 2 * config.heads * config.head_dim + 4 * config.kv_heads * config.head_dim
    return 4 * config.hidden, 2 * attention + 4 * config.intermediate


def engine_need(recipe: Recipe, config: ModelConfig) -> Need:
    """Of each GPU of one engine. A KV cache that the recipe leaves to vLLM takes what is left, and is not in here."""
    engine = recipe.engine
    share, width = engine.tensor_parallel, bytes_of(engine.dtype)
    parts = {"parameters": parameter_count(config) * width // share}
    token = 2 * config.layers * config.kv_heads * config.head_dim * width
    if engine.kind == "torch":
        parts["KV cache"] = engine.slots * config.max_context * token
        parts["logits"] = 2 * engine.slots * config.vocab * _FLOAT32
    elif engine.kv_cache_gib:
        parts["KV cache"] = int(engine.kv_cache_gib * 2**30)
    return Need(parts)


def critic_need(recipe: Recipe, config: ModelConfig) -> Need:
    """Of all critics together, each of the size that the recipe gives it; of a checkpoint's the policy's is taken."""
    critic = recipe.critic
    own = new_shape(recipe, critic, config.vocab) if critic.source == "new" else config
    plain = recipe.model_copy(
        update={"learner": recipe.learner.model_copy(update={"dtype": "float32", "activation_checkpointing": False})}
    )
    count = parameter_count(own)
    return Need(
        {
            "parameters, gradients, moments": critic.count * count * 4 * _FLOAT32,
            "activations": activation_bytes(plain, own) if critic.count else 0,
        }
    )
