"""Tokens per second of the embedded engine and of the learner, on this machine, against plain Transformers.

``python -m benchmarks.decode_speed [--quick] [--threads N] [--cpu-time]`` prints JSON. Decoding is measured three ways:

- ``equal``: one batch, equal prompts, equal lengths: what ``generate`` of Transformers does best (the baseline);
- ``agentic``: sessions of several turns, a long prompt, short turns of unequal length; Transformers has to run each
  round of turns as one padded batch that ends with its longest and recomputes the whole prompt;
- ``prefill``: prompt tokens only.

Both sides have the same weights, sample at temperature 1 and, like every engine here, report log-probs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast

import torch

from roll_core.engines import SamplingParams
from roll_core.engines.torch_engine import TorchEngine
from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig, save_hf
from roll_core.types import TrainBatch, Weights

_clock: Callable[[], float] = time.perf_counter

VOCAB = 1500
CONTEXT = 1536


def make_config(hidden: int, layers: int = 4) -> ModelConfig:
    return ModelConfig(
        vocab=VOCAB,
        hidden=hidden,
        layers=layers,
        heads=4,
        kv_heads=2,
        head_dim=hidden // 4,
        intermediate=hidden * 3,
        max_context=CONTEXT,
    )


def _prompt(size: int, rng: random.Random) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(size)]


async def _agentic(engine: TorchEngine, sessions: int, turns: int, opening: int) -> int:
    """Tokens sampled by ``sessions`` episodes that do not wait for each other."""

    async def episode(number: int) -> int:
        rng, total = random.Random(number), 0
        ids = _prompt(opening, rng)
        for turn in range(turns):
            params = SamplingParams(max_tokens=rng.randint(4, 28))
            got = await engine.generate(f"{number}-{turn}", ids, params, session=str(number))
            total += len(got.token_ids)
            ids = ids + list(got.token_ids) + _prompt(rng.randint(15, 45), rng)
        engine.release(str(number))
        return total

    return sum(await asyncio.gather(*(episode(i) for i in range(sessions))))


async def _timed(engine: TorchEngine, repeats: int, job: Callable[[int], Any]) -> float:
    """Median tokens per second of ``job``, which returns the number of tokens."""
    speeds: list[float] = []
    for number in range(repeats + 1):
        begin = _clock()
        tokens = await job(number)
        speeds.append(tokens / (_clock() - begin))
    return statistics.median(speeds[1:])  # the first warms up


async def measure_engine(model: CausalLM, batch: int, repeats: int, new: int, turns: int) -> dict[str, float]:
    weights = Weights(0, dict(model.named_parameters()))
    engine = TorchEngine(model.config, weights, slots=batch)
    await engine.start()
    rng = random.Random(0)
    prompts = [_prompt(256, rng) for _ in range(batch)]

    async def equal(number: int) -> int:
        jobs = (engine.generate(f"{number}-{i}", p, SamplingParams(max_tokens=new)) for i, p in enumerate(prompts))
        return sum(len(got.token_ids) for got in await asyncio.gather(*jobs))

    async def prefill(number: int) -> int:
        jobs = (engine.generate(f"{number}-{i}", p, SamplingParams(max_tokens=1)) for i, p in enumerate(prompts))
        await asyncio.gather(*jobs)
        return 256 * batch

    result = {
        "prefill": await _timed(engine, repeats, prefill),
        "equal": await _timed(engine, repeats, equal),
        "agentic": await _timed(engine, repeats, lambda _: _agentic(engine, batch, turns, 256)),
    }
    await engine.close()
    return result


def measure_transformers(model: CausalLM, batch: int, repeats: int, new: int, turns: int) -> dict[str, float]:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as directory:
        save_hf(model, directory)
        hf = cast(Any, transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))

    hf.eval()

    def generate(prompts: list[list[int]], lengths: list[int]) -> int:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = hf.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=max(lengths),
            min_new_tokens=max(lengths),
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        scores = torch.stack(out.scores, 1).log_softmax(-1)
        scores.gather(-1, out.sequences[:, width:, None])
        return sum(lengths)

    def agentic() -> int:
        rngs = [random.Random(i) for i in range(batch)]
        prompts, total = [_prompt(256, rng) for rng in rngs], 0
        for _ in range(turns):
            lengths = [rng.randint(4, 28) for rng in rngs]
            total += generate(prompts, lengths)
            prompts = [
                p + _prompt(n, rng) + _prompt(rng.randint(15, 45), rng)
                for p, n, rng in zip(prompts, lengths, rngs, strict=True)
            ]
        return total

    rng = random.Random(0)
    equal = [_prompt(256, rng) for _ in range(batch)]
    result: dict[str, float] = {}
    jobs: dict[str, Callable[[], int]] = {"equal": lambda: generate(equal, [new] * batch), "agentic": agentic}
    for name, job in jobs.items():
        speeds: list[float] = []
        for _ in range(repeats + 1):
            begin = _clock()
            with torch.inference_mode():
                tokens = job()
            speeds.append(tokens / (_clock() - begin))
        result[name] = statistics.median(speeds[1:])
    return result


def measure_learner(config: ModelConfig, rows: int, width: int) -> dict[str, float]:
    """A batch of episodes of unequal length, 15 % of it response."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    mask, attention = torch.zeros(rows, width), torch.zeros(rows, width)
    for number in range(rows):
        length = rng.randint(width // 3, width)
        attention[number, :length] = 1
        for last in range(length - 1, 20, -100):
            mask[number, last - 14 : last + 1] = 1
    batch = TrainBatch(
        tokens_BT=torch.randint(0, VOCAB, (rows, width), generator=generator),
        mask_BT=mask,
        attention_BT=attention,
        behaviour_logprobs_BT=-7.0 * mask,
        advantages_BT=torch.randn(rows, 1, generator=generator) * mask,
        versions_BT=torch.where(mask > 0, 0, -1),
        rewards_B=torch.zeros(rows),
        group_B=torch.zeros(rows, dtype=torch.int64),
    )
    learner = TorchLearner(CausalLM(config), LearnerConfig(loss="tis"))
    learner.train_step(batch)
    begin = _clock()
    learner.train_step(batch)
    seconds = _clock() - begin
    return {"step_s": round(seconds, 2), "tokens_per_s": round(attention.sum().item() / seconds)}


def main() -> None:
    global _clock
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape, one repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds: for a machine with other work on it"
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave Transformers out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu_time:
        _clock = time.process_time
    repeats, new, turns = (1, 48, 4) if options.quick else (3, 128, 10)
    rows = []
    for hidden in (128,) if options.quick else (128, 192):
        model = CausalLM(make_config(hidden))
        for batch in (32,) if options.quick else (16, 32, 64):
            ours = asyncio.run(measure_engine(model, batch, repeats, new, turns))
            row: dict[str, Any] = {"hidden": hidden, "layers": 4, "batch": batch}
            row["engine_tokens_per_s"] = {k: round(v) for k, v in ours.items()}
            if not options.no_baseline:
                theirs = measure_transformers(model, batch, repeats, new, turns)
                row["transformers_tokens_per_s"] = {k: round(v) for k, v in theirs.items()}
                row["ratio"] = {k: round(ours[k] / theirs[k], 2) for k in theirs}
            rows.append(row)
    learner = {
        f"hidden {hidden}": measure_learner(make_config(hidden), *((16, 300) if options.quick else (64, 800)))
        for hidden in ((128,) if options.quick else (128, 192))
    }
    print(
        json.dumps(
            {
                "threads": options.threads,
                "clock": "cpu" if options.cpu_time else "wall",
                "decode": rows,
                "learner": learner,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
