"""Small policies with weights away from their start, and what they think of somebody's tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from roll_core.engines.base import SamplingParams
from roll_core.models import CausalLM, ModelConfig, train_tokenizer
from roll_core.models.qwen import RopeScaling
from roll_core.types import Generation, Weights

TOKENIZER = train_tokenizer(["go to fridge 1 and take mug 2 from shelf 3"] * 4, 300, ["<|pad|>", "<|end|>"])
QWEN3 = ModelConfig(
    vocab=TOKENIZER.vocab_size, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=64, max_context=512
)
"""Its head is tied to the embedding."""
LLAMA = replace(QWEN3, qk_norm=False, tie=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))


def policy(config: ModelConfig, version: int) -> CausalLM:
    """The policy of this version: every parameter differs from that of any other version."""
    model = CausalLM(config, seed=version).requires_grad_(False)
    generator = torch.Generator().manual_seed(100 + version)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def weights(config: ModelConfig, version: int) -> Weights:
    return Weights(version, {n: p.clone() for n, p in policy(config, version).named_parameters()})


def logprobs_under(model: CausalLM, prompt: list[int], got: Generation, params: SamplingParams) -> torch.Tensor:
    """Log-probs of the sampled tokens under the distribution that ``params`` ask for."""
    ids = torch.tensor([prompt + list(got.token_ids)])
    with torch.no_grad():
        logits = model(ids)[0, len(prompt) - 1 : -1] / (params.temperature or 1.0)
    probs = logits.softmax(-1)
    if params.temperature and params.top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        outside = torch.zeros_like(probs, dtype=torch.bool).scatter(
            -1, order, ranked.cumsum(-1) - ranked >= params.top_p
        )
        probs = probs.masked_fill(outside, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs.gather(-1, torch.tensor(got.token_ids).unsqueeze(-1)).squeeze(-1).log()


def gap(model: CausalLM, prompt: list[int], got: Generation, params: SamplingParams) -> float:
    """The largest difference of a token's log-prob between engine and learner."""
    return float((logprobs_under(model, prompt, got, params) - torch.tensor(got.logprobs)).abs().max())
