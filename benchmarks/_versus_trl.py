"""Our trainer and TRL's GRPO trainer from the same model files, on the same task, with the same reward and loss.

``python -m benchmarks._versus_trl ARM START STEPS`` runs one arm in this process and prints what it measured as JSON.
The task is to write four digits backwards; the reward is the share of digits in their place. Both sides: batches of 16
prompts with 8 answers of at most 8 tokens, GRPO with PPO's clip, group-normalised advantages, one update a batch, AdamW
at a constant rate, no divergence term, float32, one thread for torch in each of a process's threads. TRL's gradient
checkpointing, which is on by default, is off: it saves memory that nobody needs here.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import random
import statistics
import tempfile
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from roll_core.config import Recipe
from roll_core.config.load import recipe_from_data
from roll_core.learners import LearnerConfig
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import CausalLM, ModelConfig, Tokenizer, save_hf, train_tokenizer
from roll_core.rollout.prompting import transcript_action, transcript_text
from roll_core.rollout.sessions import LocalSessions
from roll_core.training.progress import Display
from roll_core.training.reporting import FileReporter
from roll_core.training.run import RunDirectory, RunIdentity, train

GROUPS, GROUP_SIZE, NEW_TOKENS, LR = 16, 8, 8, 1e-3
SAMPLES = GROUPS * GROUP_SIZE
WARM_STEPS = 3
"""Not measured: what is computed for the first time is allocated for the first time."""


def tasks(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(str(rng.randrange(10)) for _ in range(4)) for _ in range(count)]


def reward(task: str, answer: str) -> float:
    """Share of the digits that stand where they should."""
    wanted, found = task.split()[::-1], answer.split("\n", 1)[0].split()
    return sum(a == b for a, b in zip(wanted, found, strict=False)) / len(wanted)


class Backwards:
    """The task as an environment of one turn."""

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self.task = task
        return task, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        earned = reward(self.task, action)
        return "", earned, True, False, {"success": earned == 1.0}

    def close(self) -> None: ...


def make_start(directory: Path, updates: int) -> None:
    """A model that has begun to learn the task by imitation: Hugging Face's files for both sides."""
    texts = [transcript_text(t, str) + transcript_action(" ".join(t.split()[::-1])) for t in tasks(2000)]  # type: ignore[arg-type]
    tokenizer = train_tokenizer(texts, 280, ["<|pad|>"])
    config = ModelConfig(
        vocab=tokenizer.vocab_size, hidden=96, layers=3, heads=4, kv_heads=2, head_dim=24, intermediate=256,
        max_context=64,
    )  # fmt: skip
    model = CausalLM(config, seed=0)
    learner, rng = TorchLearner(model, LearnerConfig(optimizer="muon", lr=5e-3)), random.Random(1)
    ids = [tokenizer.encode(text) for text in texts]
    for _ in range(updates):
        rows = rng.sample(ids, 64)
        width = max(map(len, rows))
        tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask_BT = (tokens_BT != 0).float()
        mask_BT[:, :5] = 0
        learner.sft_step(tokens_BT, mask_BT)
    save_hf(model, directory, tokenizer)


def recipe(start: Path, steps: int, alpha: float) -> Recipe:
    return recipe_from_data(
        {
            "name": "backwards",
            "env": {"name": "backwards"},
            "platform": {"mode": "local", "local_entry": "benchmarks._versus_trl:Backwards"},
            "model": {"source": "checkpoint", "path": str(start), "max_context": 64},
            "tokenizer": {"source": "checkpoint"},
            "engine": {"slots": SAMPLES, "prefill_tokens": 2048},
            "learner": {"lr": LR, "beta2": 0.999, "micro_batch_tokens": 1 << 16},
            "algorithm": {"advantage": "grpo", "loss": "grpo", "filter_zero_variance": False},
            "rollout": {
                "concurrency": SAMPLES, "group_size": GROUP_SIZE, "groups_per_batch": GROUPS, "alpha": alpha,
                "max_turns": 1, "max_tokens_per_turn": NEW_TOKENS, "episodes_per_sandbox": 1_000_000,
            },
            "evaluation": {"tasks": 0},
            "training": {"steps": steps, "threads": 1},
            "checkpoint": {"every_steps": 10 * steps},
        },
        "benchmark",
    )  # fmt: skip


class _Reporter(FileReporter):
    """Also notes the processor time at the end of each step, of the process and of each of its threads."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.cpu_s: list[float] = []
        self.thread_cpu_s: list[dict[str, float]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if "time/step_s" in values:
            self.cpu_s.append(time.process_time())
            self.thread_cpu_s.append(_thread_cpu_s())
        super().metrics(step, values)

    def thread_ms(self) -> dict[str, float]:
        """Of a step, by the thread's name: the event loop is ``MainThread``."""
        begin, end = self.thread_cpu_s[WARM_STEPS - 1], self.thread_cpu_s[-1]
        steps = len(self.thread_cpu_s) - WARM_STEPS
        found = {name: 1e3 * (cpu_s - begin.get(name, 0.0)) / steps for name, cpu_s in end.items()}
        return {name: round(ms, 1) for name, ms in found.items() if ms >= 0.5}


def _thread_cpu_s() -> dict[str, float]:
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            clock = time.pthread_getcpuclockid(thread.ident)
            name = thread.name.partition("_")[0]
            found[name] = found.get(name, 0.0) + time.clock_gettime(clock)
    return found


def play_ours(start: Path, steps: int, alpha: float) -> dict[str, Any]:
    """The production trainer, everything in it switched on: ledger, event log, metrics, checkpoints at both ends."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run")

        async def main() -> tuple[float, _Reporter]:
            chosen = recipe(start, steps, alpha)
            directory.create(chosen, RunIdentity("run-0000000001"))
            reporter = _Reporter(directory.path)
            sessions = LocalSessions(chosen.platform.local_entry, tasks={"train": tasks(2000)})
            display = Display("benchmark", console=Console(file=StringIO()))
            begin_s = time.thread_time()
            try:
                await train(chosen, directory, sessions, reporter, display, demo_cache=Path(folder) / "demos")
            finally:
                await reporter.close()
                await sessions.close()
            return time.thread_time() - begin_s, reporter

        # The loop's own thread does all but decode, learn and play: what is left is what keeping books costs.
        loop_s, reporter = asyncio.run(main())
        lines = [json.loads(line)["values"] for line in (directory.path / "metrics.jsonl").read_text().splitlines()]
    metrics = [values for values in lines if "time/step_s" in values]
    tokens = sum(values["learner/response_tokens"] for values in metrics)
    rewards = [v["rollout/reward"] for v in metrics if "rollout/reward" in v]  # none where no episode ended in a step
    return _measured([v["time/step_s"] for v in metrics], reporter.cpu_s, rewards) | {
        "loop_thread_s": round(loop_s, 2),
        "thread_ms_per_step": reporter.thread_ms(),
        "tokens": int(tokens),
    }


def play_trl(start: Path, steps: int) -> dict[str, Any]:
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    trl: Any = importlib.import_module("trl")  # its annotations are not meant for others

    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.pad_token = "<|pad|>"
    newline = Tokenizer.load(start).encode("\n")[0]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(newline)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.generation_config.eos_token_id = newline
    rewards: list[float] = []
    ended_s, cpu_s = [time.perf_counter()], []

    def judge(prompts: list[str], completions: list[str], task: list[str], **_: Any) -> list[float]:
        found = [reward(t, c + "\n") for t, c in zip(task, completions, strict=True)]
        rewards.append(statistics.fmean(found))
        return found

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended_s.append(time.perf_counter())
            cpu_s.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, per_device_train_batch_size=SAMPLES, num_generations=GROUP_SIZE, temperature=1.0,
            max_completion_length=NEW_TOKENS, beta=0.0, learning_rate=LR, lr_scheduler_type="constant", max_steps=steps,
            loss_type="grpo", gradient_checkpointing=False, seed=0, adam_beta1=0.9, adam_beta2=0.999,
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": transcript_text(t, str), "task": t} for t in tasks(2000)])  # type: ignore[arg-type]
        trainer = trl.GRPOTrainer(
            model=model, reward_funcs=judge, args=settings, train_dataset=data, processing_class=tokenizer,
            callbacks=[Clock()],
        )  # fmt: skip
        ended_s[0] = time.perf_counter()
        trainer.train()
    return _measured([b - a for a, b in itertools.pairwise(ended_s)], cpu_s, rewards)


def _measured(step_s: list[float], cpu_s: list[float], rewards: list[float]) -> dict[str, Any]:
    """``cpu_s``: processor time of the process at the end of each step."""
    counted = step_s[WARM_STEPS:]
    cpu_step_s = (cpu_s[-1] - cpu_s[WARM_STEPS - 1]) / len(counted)
    return {
        "samples_per_s": round(SAMPLES * len(counted) / sum(counted), 1),
        "step_p50_s": round(statistics.median(counted), 4),
        "samples_per_cpu_s": round(SAMPLES / cpu_step_s, 1),
        "reward_first": round(statistics.fmean(rewards[:3]), 3),
        "reward_last": round(statistics.fmean(rewards[-5:]), 3),
        "rss_mib": _peak_rss_mib(),
    }


def _peak_rss_mib() -> int:
    """Of this program; getrusage would tell the larger of it and of whoever started it."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=["start", "sync", "async", "trl"])
    parser.add_argument("start", type=Path)
    parser.add_argument("steps", type=int, help="learner steps; of `start`, updates of imitation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.arm == "start":
        make_start(options.start, options.steps)
    elif options.arm == "trl":
        print(json.dumps(play_trl(options.start, options.steps)))
    else:
        print(json.dumps(play_ours(options.start, options.steps, 0.0 if options.arm == "sync" else 1.0)))


if __name__ == "__main__":
    main()
