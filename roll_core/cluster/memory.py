"""How much memory the roles need, from the recipe and the model's shape alone: an estimate before anything starts.

Counted: parameters, gradients and moments; the activations that a backward pass keeps; logits of one chunk; weights and
KV cache of engines. Not counted: the CUDA context (about half a GiB), fragmentation, buffers of collectives. What is
counted is compared with measured allocations of the CPU in the tests; on GPUs nothing has been measured yet.

Sources: 16 bytes a parameter for float32 training by Adam (Rajbhandari et al., ZeRO, arXiv 1910.02054, §3.1); the
activations of a block as in Korthikanti et al. (arXiv 2205.05198, §4), without the attention matrix, which the fused
kernel does not keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from roll_core.cluster.shape import new_shape
from roll_core.config import Recipe
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


def sharers(recipe: Recipe) -> int:
    """Processes of the learner that have one copy of the parameters between them. Megatron's replicas have one each;
    that its distributed optimizer shares out the moments is not counted."""
    learner = recipe.learner
    return learner.tensor_parallel * learner.pipeline_parallel if learner.kind == "megatron" else learner.processes


def learner_need(recipe: Recipe, config: ModelConfig) -> Need:
    """Of each of the learner's processes."""
    learner = recipe.learner
    count, trained = parameter_count(config), trained_count(config, learner.lora_rank)
    share = sharers(recipe)
    moments = 2 if learner.optimizer == "adamw" else 1
    adapters = trained if learner.lora_rank else 0
    parts = {
        "parameters": (count + adapters) * _FLOAT32 // share,
        "gradients": trained * _FLOAT32 // share,
        "moments": trained * moments * _FLOAT32 // share,
        "activations": activation_bytes(recipe, config),
    }
    if recipe.algorithm.kl_coef and recipe.placement.reference == "learner":
        parts["reference"] = count * _FLOAT32 // share
    if learner.kind == "fsdp" and share > 1:  # gathered: a block, the next one, and the embedding
        vocabulary = config.vocab * config.hidden * (1 if config.tie else 2)
        parts["gathered"] = (2 * (count - vocabulary) // config.layers + vocabulary) * bytes_of(learner.dtype)
    elif learner.dtype == "bfloat16":
        parts["rounded parameters"] = count * 2
    return Need(parts)


def activation_bytes(recipe: Recipe, config: ModelConfig) -> int:
    """What a forward pass keeps for the backward pass, at the largest micro-batch."""
    learner = recipe.learner
    tokens = max(learner.micro_batch_tokens, config.max_context)
    width = bytes_of(learner.dtype)
    attention = 2 * config.heads * config.head_dim + 4 * config.kv_heads * config.head_dim
    block = tokens * (4 * config.hidden + 2 * attention + 4 * config.intermediate) * width
    kept = tokens * config.hidden * _FLOAT32 * config.layers
    inside = block + kept if learner.activation_checkpointing else block * config.layers
    logits = 3 * min(tokens, _HEAD_TOKENS) * config.vocab * _FLOAT32
    return inside + logits


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
