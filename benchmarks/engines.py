"""The embedded engine against ``generate`` of Transformers, and the whole trainer against TRL's, as ratios of one run.

``python -m benchmarks.engines [--quick]`` prints JSON as its last line.

- ``decode``: requests arrive one after the other, faster than either side serves them, and want unequal numbers of
  tokens. The engine admits each as soon as a row is free; ``generate`` takes what has arrived, up to as many rows, and
  ends with the longest of them. Same weights, temperature 1, log-probs reported, one thread.
  ``ratio_vs_hf_generate`` is the median over rounds in which both sides take turns.
- ``train``: our trainer (``async``: α = 1, ``sync``: α = 0) and TRL's GRPO trainer (settings in
  ``benchmarks/_versus_trl.py``), each in a process of its own with one thread for torch; ``ratio_vs_trl`` compares
  samples per second, ``ratio_vs_trl_cpu`` samples per second of processor time, which other work on the machine
  disturbs less. α = 1 keeps the engine's thread and the learner's busy at once: that needs a second free core.
  ``bookkeeping_us_per_token`` is the time of the event loop's thread per sampled token: scheduling, ledger, event log,
  metrics, start and end of the run; ``thread_ms_per_step`` of an arm is the processor time of each of its threads.
  ``rss_mib`` is the most memory that an arm's process ever held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks._measuring import machine
from roll_core.engines import SamplingParams
from roll_core.engines.torch_engine import TorchEngine
from roll_core.models import CausalLM, ModelConfig, save_hf
from roll_core.types import Weights

CONFIG = ModelConfig(
    vocab=1500, hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, intermediate=384, max_context=512
)
ROWS = 32
"""Sequences decoded at once, on both sides."""
APART_S = 0.002
"""Between two arrivals: 500 a second, several times what either side serves."""


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    new_tokens: int
    at_s: float


def workload(count: int, seed: int) -> list[Request]:
    """Prompts of 16 to 96 tokens; answers log-normal with median 24, a twentieth of them beyond 120, at most 300."""
    rng = random.Random(seed)
    return [
        Request(
            [rng.randrange(CONFIG.vocab) for _ in range(rng.randint(16, 96))],
            max(1, min(300, round(rng.lognormvariate(3.18, 1.0)))),
            number * APART_S,
        )
        for number in range(count)
    ]


Seconds = tuple[float, float]
"""Of the wall's clock and of the processor, from the first arrival to the last answer."""


def _clocks() -> Seconds:
    return time.perf_counter(), time.process_time()


def _since(begin: Seconds) -> Seconds:
    wall_s, cpu_s = _clocks()
    return wall_s - begin[0], cpu_s - begin[1]


async def play_engine(weights: Weights, requests: list[Request]) -> Seconds:
    engine = TorchEngine(CONFIG, weights, slots=ROWS, prefill_tokens=1024, threads=1)
    await engine.start()
    try:
        await engine.generate("warm-up", [0], SamplingParams(max_tokens=4))
        begin = _clocks()

        async def one(number: int, request: Request) -> None:
            await asyncio.sleep(max(0.0, begin[0] + request.at_s - time.perf_counter()))
            await engine.generate(str(number), request.prompt, SamplingParams(request.new_tokens, seed=number))

        await asyncio.gather(*(one(i, r) for i, r in enumerate(requests)))
        return _since(begin)
    finally:
        await engine.close()


def load_transformers(model: CausalLM) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as directory:
        save_hf(model, directory)
        return cast(Any, transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)).eval()


def play_transformers(hf: Any, requests: list[Request]) -> Seconds:
    """The same by batches: those that have arrived, at most as many as the engine has rows."""
    left, begin = list(requests), _clocks()
    while left:
        time.sleep(max(0.0, begin[0] + left[0].at_s - time.perf_counter()))
        now_s = time.perf_counter() - begin[0]
        batch = [r for r in left[:ROWS] if r.at_s <= now_s]
        left = left[len(batch) :]
        width, longest = max(len(r.prompt) for r in batch), max(r.new_tokens for r in batch)
        with torch.inference_mode():
            out = hf.generate(
                torch.tensor([[0] * (width - len(r.prompt)) + r.prompt for r in batch]),
                attention_mask=torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in batch]),
                do_sample=True, top_k=0, max_new_tokens=longest, min_new_tokens=longest, pad_token_id=0,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
            torch.stack(out.scores, 1).log_softmax(-1).gather(-1, out.sequences[:, width:, None])
    return _since(begin)


def measure_decode(count: int, rounds: int) -> dict[str, Any]:
    model = CausalLM(CONFIG)
    weights, hf = Weights(0, dict(model.named_parameters())), load_transformers(model)
    play_transformers(hf, workload(4, seed=99))
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    tokens: list[int] = []
    for number in range(rounds):
        requests = workload(count, seed=number)
        tokens.append(sum(r.new_tokens for r in requests))
        ours.append(asyncio.run(play_engine(weights, requests)))
        theirs.append(play_transformers(hf, requests))

    def ratio(clock: int) -> list[float]:
        return [round(b[clock] / a[clock], 2) for a, b in zip(ours, theirs, strict=True)]

    return {
        "requests": count,
        "engine_tokens_per_s": round(statistics.median(n / a[0] for n, a in zip(tokens, ours, strict=True))),
        "hf_tokens_per_s": round(statistics.median(n / b[0] for n, b in zip(tokens, theirs, strict=True))),
        "ratio_vs_hf_generate": statistics.median(ratio(0)),
        "ratio_vs_hf_generate_cpu": statistics.median(ratio(1)),
        "ratios": ratio(0),
    }


def _arm(arm: str, start: Path, steps: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks._versus_trl", arm, str(start), str(steps)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, env=offline)
    if done.returncode:
        raise RuntimeError(f"the arm {arm!r} failed:\n{done.stderr[-2000:]}")
    return {} if arm == "start" else cast(dict[str, Any], json.loads(done.stdout.strip().splitlines()[-1]))


def measure_training(steps: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {"async": [], "sync": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        _arm("start", start, 22)
        for _ in range(rounds):
            for arm, results in found.items():
                results.append(_arm(arm, start, steps))

    def ratio(arm: str, unit: str) -> float:
        pairs = zip(found[arm], found["trl"], strict=True)
        return round(statistics.median(float(ours[unit] / theirs[unit]) for ours, theirs in pairs), 2)

    books = [1e6 * one["loop_thread_s"] / one["tokens"] for one in found["async"]]
    return {
        "steps": steps,
        "ratio_vs_trl": ratio("async", "samples_per_s"),
        "ratio_vs_trl_sync": ratio("sync", "samples_per_s"),
        "ratio_vs_trl_cpu": ratio("async", "samples_per_cpu_s"),
        "bookkeeping_us_per_token": round(statistics.median(books), 1),
        "rss_mib": {arm: max(one["rss_mib"] for one in results) for arm, results in found.items()},
        "arms": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests and steps, one round")
    parser.add_argument("--only", choices=["decode", "train"], help="one of the two comparisons")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "engines", "quick": options.quick, "machine": machine()}
    if options.only != "train":
        result["decode"] = measure_decode(*((96, 2) if options.quick else (256, 5)))
    if options.only != "decode":
        result["train"] = measure_training(*((40, 1) if options.quick else (120, 3)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
