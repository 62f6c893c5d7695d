"""An engine whose samples depend on nothing but the request and the weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import torch

from roll_core.engines.base import EngineStats, SamplingParams
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import Generation, Weights


class PlainEngine:
    """One request after the other, the whole sequence computed anew for each token, by the learner's own network.

    Slow, but what it samples depends on nothing beside the request and the weights: runs can be compared bit for bit.
    """

    def __init__(self, config: ModelConfig, weights: Weights, **_: object) -> None:
        self._model = CausalLM(config)
        self._set(weights)

    def _set(self, weights: Weights) -> None:
        self._version = weights.version
        self._model.load_state_dict(weights.tensors, strict=False)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def abort(self, request_id: str) -> None:
        pass

    def release(self, session: str) -> None:
        pass

    async def load_weights(self, weights: Weights) -> None:
        self._set(weights)

    def stats(self) -> EngineStats:
        return EngineStats(self._version, 0, 0, 0, 0, 0, 1, 0.0)

    async def generate(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, session: str = ""
    ) -> Generation:
        await asyncio.sleep(0)
        generator = torch.Generator().manual_seed(params.seed or 0)
        ids, logprobs = list(prompt_ids), []
        while len(logprobs) < params.max_tokens:
            with torch.no_grad():
                scores = torch.log_softmax(self._model(torch.tensor([ids]))[0, -1], -1)
            token = int(torch.multinomial(scores.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(scores[token]))
            if token in params.stop_token_ids:
                break
        sampled = tuple(ids[len(prompt_ids) :])
        reason = "stop" if sampled[-1] in params.stop_token_ids else "length"
        return Generation(sampled, tuple(logprobs), (self._version,) * len(sampled), reason)
