"""What one GPU does with this trainer: speed, memory, and whether bfloat16 says the same as float32.

``python -m benchmarks.gpu [--size tiny|small|base] [--device cuda:0] [--quick]`` prints a table on standard error and
one line of JSON last; on an H100-class device it is meant to end within eight minutes. It needs torch and this project;
vLLM, Ray and megatron-core are measured where they are installed, and named as missing where not. Weights are random:
speed does not depend on what they say. On a machine without a GPU ``--device cpu --size tiny`` runs every part, which
is how it is tested; such numbers say nothing about a GPU.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import logging
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from roll_core.algorithms import POLICY_LOSSES, LossInputs
from roll_core.algorithms.credit import Credit, Evidence
from roll_core.algorithms.rhythm import RhythmSettings, rhythm_credit
from roll_core.engines import SamplingParams
from roll_core.engines.base import Engine
from roll_core.engines.torch_engine import TorchEngine
from roll_core.learners import LearnerConfig
from roll_core.learners.actor_attn import AttentionReader
from roll_core.learners.base import Learner
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig
from roll_core.types import TrainBatch

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 peak by a part of the device's name, from the vendors' data sheets. Unknown devices get no MFU."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured. ``base`` has the shape of Qwen3-1.7B, ``small`` of Qwen3-0.6B."""

    model: ModelConfig
    requests: int
    prompt: int
    new: int
    rows: int
    width: int
    tokens: int
    """Length of the sequence on which losses and credit are timed."""


def _qwen3(hidden: int, layers: int, intermediate: int) -> ModelConfig:
    return ModelConfig(
        vocab=151_936, hidden=hidden, layers=layers, heads=16, kv_heads=8, head_dim=128, intermediate=intermediate,
        rope_theta=1e6, max_context=8192 + 512,
    )  # fmt: skip


SIZES = {
    "tiny": Size(
        ModelConfig(vocab=512, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_context=256),
        requests=4, prompt=16, new=8, rows=4, width=48, tokens=128,
    ),
    "small": Size(_qwen3(1024, 28, 3072), requests=64, prompt=512, new=256, rows=16, width=2048, tokens=8192),
    "base": Size(_qwen3(2048, 28, 6144), requests=64, prompt=512, new=256, rows=8, width=2048, tokens=8192),
}  # fmt: skip


class Meter:
    """Time and memory of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"

    def wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, job: Callable[[], object], repeats: int) -> float:
        """Median of ``repeats`` after one that warms up."""
        taken = []
        for _ in range(repeats + 1):
            self.wait()
            begin = time.perf_counter()
            job()
            self.wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[1:])

    def forget(self) -> None:
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Since :meth:`forget`; None where the device does not say."""
        return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if self._cuda else None


def parameters(config: ModelConfig) -> int:
    """Of the network, the embedding counted once."""
    with torch.device("meta"):
        block = config.hidden * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return config.vocab * config.hidden + config.layers * (block + 3 * config.hidden * config.intermediate)


def train_flops(config: ModelConfig, tokens: int, width: int) -> float:
    """6 per parameter and token, and the attention's own 12·L·H·E·T per token (Narayanan et al., arXiv 2104.04473)."""
    attention = 12 * config.layers * config.heads * config.head_dim * width / 2  # causal: half of the square
    return tokens * (6 * parameters(config) + attention)


async def _sampled(engine: Engine, size: Size, seed: int) -> tuple[list[list[int]], list[Any]]:
    rng = random.Random(seed)
    vocab = size.model.vocab
    prompts = [[rng.randrange(vocab) for _ in range(size.prompt)] for _ in range(size.requests)]
    jobs = (
        engine.generate(f"{seed}-{i}", p, SamplingParams(max_tokens=rng.randint(size.new // 2, size.new), seed=i))
        for i, p in enumerate(prompts)
    )
    return prompts, list(await asyncio.gather(*jobs))


def measure_engine(
    meter: Meter, size: Size, dtype: torch.dtype, repeats: int, make: Callable[..., Engine] = TorchEngine
) -> dict[str, Any]:
    """Sampling with continuous batching, loading of weights, and the log-probs against those of float32."""
    meter.forget()
    learner = TorchLearner(CausalLM(size.model), LearnerConfig(loss="tis"), device=str(meter.device))
    weights = learner.weights()

    async def main() -> dict[str, Any]:
        engine = make(
            size.model, weights, slots=size.requests, max_context=size.prompt + size.new, prefill_tokens=8192,
            device=str(meter.device), dtype=dtype,
        )  # fmt: skip
        await engine.start()
        try:
            speeds = []
            for number in range(repeats + 1):
                begin = time.perf_counter()
                prompts, results = await _sampled(engine, size, number)
                speeds.append(sum(len(r.token_ids) for r in results) / (time.perf_counter() - begin))
            syncs = []
            for _ in range(3):
                begin = time.perf_counter()
                await engine.load_weights(learner.weights())
                syncs.append(time.perf_counter() - begin)
            batch = _packed(prompts[:4], results[:4])
        finally:
            await engine.close()
        exact = learner.logprobs(batch.tokens_BT, batch.mask_BT).cpu()
        gap = (exact - batch.behaviour_logprobs_BT)[batch.mask_BT > 0].abs()
        return {
            "tokens_per_s": round(statistics.median(speeds[1:])),
            "weight_sync_s": round(statistics.median(syncs), 3),
            "logprob_gap_mean": round(gap.mean().item(), 5),
            "logprob_gap_max": round(gap.max().item(), 5),
            "peak_gib": meter.peak_gib(),
        }

    return asyncio.run(main())


def _packed(prompts: list[list[int]], results: list[Any]) -> TrainBatch:
    width = max(len(p) + len(r.token_ids) for p, r in zip(prompts, results, strict=True))
    shape = (len(prompts), width)
    tokens, versions = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    mask, attention, behaviour = (torch.zeros(shape) for _ in range(3))
    for row, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        end, at = len(prompt) + len(result.token_ids), slice(len(prompt), len(prompt) + len(result.token_ids))
        tokens[row, :end] = torch.tensor(prompt + list(result.token_ids))
        attention[row, :end], mask[row, at], versions[row, at] = 1, 1, 0
        behaviour[row, at] = torch.tensor(result.logprobs)
    rows = len(prompts)
    return TrainBatch(
        tokens, mask, attention, behaviour, mask.clone(), versions, torch.zeros(rows), torch.zeros(rows).long()
    )


def training_batch(size: Size) -> TrainBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (size.rows, size.width)
    mask = torch.ones(shape)
    mask[:, : size.width // 4] = 0
    return TrainBatch(
        tokens_BT=torch.randint(0, size.model.vocab, shape, generator=generator),
        mask_BT=mask,
        attention_BT=torch.ones(shape),
        behaviour_logprobs_BT=-11.0 * mask,
        advantages_BT=torch.randn(size.rows, 1, generator=generator) * mask,
        versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=torch.zeros(size.rows),
        group_B=torch.zeros(size.rows, dtype=torch.int64),
    )


def measure_learner(meter: Meter, size: Size, make: Callable[[CausalLM], Learner], repeats: int) -> dict[str, Any]:
    """Whole steps: log-probs, loss, backward, clipping, optimizer."""
    meter.forget()
    batch, learner = training_batch(size), make(CausalLM(size.model))
    try:
        step_s = meter.seconds(lambda: learner.train_step(batch), repeats)
    finally:
        learner.close()
    tokens = size.rows * size.width
    flops = train_flops(size.model, tokens, size.width) / step_s
    peak = next((v for name, v in PEAK_BF16_FLOPS.items() if name in device_name(meter.device)), None)
    return {
        "tokens_per_s": round(tokens / step_s),
        "step_s": round(step_s, 3),
        "tflops": round(flops / 1e12, 2),
        "mfu_of_bf16_peak": round(flops / peak, 4) if peak else None,
        "peak_gib": meter.peak_gib(),
    }


def measure_losses(meter: Meter, size: Size, repeats: int) -> dict[str, float]:
    """Milliseconds of forward and backward of each loss on one row of ``size.tokens`` tokens."""
    generator = torch.Generator().manual_seed(0)

    def some() -> torch.Tensor:
        return (-torch.rand(1, size.tokens, generator=generator)).to(meter.device)

    inputs = [some().requires_grad_(), some(), some(), some(), torch.ones(1, size.tokens, device=meter.device)]

    def run(name: str) -> None:
        POLICY_LOSSES[name](LossInputs(*inputs)).backward()  # type: ignore[no-untyped-call]

    return {name: round(1e3 * meter.seconds(partial(run, name), 5 * repeats), 3) for name in POLICY_LOSSES}


def measure_rhythm(meter: Meter, size: Size, repeats: int) -> dict[str, float]:
    """Milliseconds to read attention, and to turn it into credit, for one response of ``size.tokens`` tokens."""
    meter.forget()
    config = replace(size.model, max_context=size.tokens)
    settings = RhythmSettings()
    reader = AttentionReader(CausalLM(config), settings, shared=False, device=str(meter.device))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab, (1, size.tokens), generator=generator)
    mask = torch.ones(1, size.tokens)
    mask[:, : size.tokens // 8] = 0
    rhythm = reader.attended(tokens, mask).rhythm
    credit, transform = Credit(mask.clone(), mask.clone()), rhythm_credit(settings)
    evidence = Evidence(mask, waad_BT=rhythm.waad_BT, fai_BT=rhythm.fai_BT, generator=generator)
    found: dict[str, Any] = {
        "read_ms": round(1e3 * meter.seconds(lambda: reader.attended(tokens, mask), repeats), 2),
        "credit_ms": round(1e3 * meter.seconds(lambda: transform(credit, evidence), repeats), 2),
        "tokens": size.tokens,
        "peak_gib": meter.peak_gib(),
    }
    return found


def measure_ray(size: Size) -> dict[str, float]:
    """A model's weights in bfloat16 through Ray's object store, as placement on Ray hands them on."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        weights = torch.zeros(parameters(size.model), dtype=torch.bfloat16).view(torch.uint8).numpy()
        begin = time.perf_counter()
        handle = ray.put(weights)
        put_s = time.perf_counter() - begin
        begin = time.perf_counter()
        ray.get(handle)
        return {"put_s": round(put_s, 3), "get_s": round(time.perf_counter() - begin, 4), "bytes": weights.nbytes}
    finally:
        ray.shutdown()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def choose_parts(size: Size, meter: Meter, repeats: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; what is not installed is left out."""
    device, micro = str(meter.device), 2 * size.width

    def plain(dtype: Literal["float32", "bfloat16"]) -> Callable[[CausalLM], Learner]:
        config = LearnerConfig(loss="tis", micro_batch_tokens=micro, dtype=dtype)
        return lambda model: TorchLearner(model, config, device=device)

    def megatron(model: CausalLM) -> Learner:
        from roll_core.learners.megatron.learner import MegatronLearner

        return MegatronLearner(model, LearnerConfig(loss="tis", micro_batch_tokens=micro), device=device)

    def vllm() -> object:
        from roll_core.engines.vllm_engine import VllmEngine

        return measure_engine(meter, size, torch.bfloat16, repeats, VllmEngine)

    parts: dict[str, tuple[str, Callable[[], object]]] = {
        "engine_bf16": ("torch", lambda: measure_engine(meter, size, torch.bfloat16, repeats)),
        "engine_fp32": ("torch", lambda: measure_engine(meter, size, torch.float32, repeats)),
        "learner_bf16": ("torch", lambda: measure_learner(meter, size, plain("bfloat16"), repeats)),
        "learner_fp32": ("torch", lambda: measure_learner(meter, size, plain("float32"), repeats)),
        "loss_ms": ("torch", lambda: measure_losses(meter, size, repeats)),
        "rhythm": ("torch", lambda: measure_rhythm(meter, size, repeats)),
        "engine_vllm": ("vllm", vllm),
        "learner_megatron": ("megatron.core", lambda: measure_learner(meter, size, megatron, repeats)),
        "ray": ("ray", lambda: measure_ray(size)),
    }
    return {name: part for name, (needs, part) in parts.items() if _installed(needs)}


OPTIONAL = ("vllm", "ray", "megatron.core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="shape of the model and of the batches")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--only", default="", help="only the parts whose name begins so, e.g. engine")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks.gpu: there is no CUDA device here. --device cpu --size tiny runs every part.\n")
    torch.set_float32_matmul_precision("high")
    size, meter, repeats = SIZES[options.size], Meter(device), 1 if options.quick else 3
    report: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "size": options.size,
        "parameters": parameters(size.model),
    }
    parts = choose_parts(size, meter, repeats)
    for name, part in parts.items():
        if not name.startswith(options.only):
            continue
        begin = time.perf_counter()
        report[name] = part()
        print(f"{name:14} {report[name]}  ({time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)
    report["missing"] = [name for name in OPTIONAL if not _installed(name)]
    print(json.dumps(report))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
