"""Training arms that can be compared: all from one and the same warm start, through the production trainer.

:func:`warm_started` makes a model by imitation, once per recipe and seed, as a Hugging Face directory with its
tokenizer; :func:`play_arm` trains from such a directory with whatever overrides make the arm. No platform and no
containers: episodes are played in this process (``platform.mode=local``), on one thread of torch.

Invariants: what is kept is named by everything that it depends on (the environment's files, the recipe's part that
decides the warm start, the seed, the code of imitation), so a hit is the same as making it again; arms of one seed
differ in their overrides only. Everything kept lies under ``$ROCK_HOME/benchmarks``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from rock.runtimes.bundles import EnvCatalog
from rock.sdk import RunStatus
from rock.sdk.home import rock_home
from roll_core.config import Recipe, load_recipe
from roll_core.errors import RollError
from roll_core.learners import optimizers
from roll_core.learners.torch_learner import TorchLearner
from roll_core.models import Tokenizer, qwen, tokenizer
from roll_core.models.checkpoint import save_hf
from roll_core.rollout import prompting
from roll_core.rollout.work import Booking
from roll_core.training import assembly, demonstrations, imitation, play
from roll_core.training.loop import Summary
from roll_core.training.metrics import Rate
from roll_core.training.progress import Display
from roll_core.training.reporting import Phase
from roll_core.training.run import RunDirectory, RunIdentity, train

_CODE: tuple[Any, ...] = (
    qwen,
    tokenizer,
    prompting.TextRules,
    prompting.transcript_text,
    prompting.transcript_action,
    prompting.TranscriptPrompter,
    demonstrations,
    imitation,
    optimizers,
    TorchLearner.sft_step,
)
"""What decides a warm start, beside recipe and environment."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One training run. ``steps``: the metrics of each learner step, in order; names as in docs/training.md."""

    success_before: Rate
    success_after: Rate
    steps: tuple[dict[str, float], ...]
    elapsed_s: float
    """Of reinforcement learning, evaluations not included."""
    between: tuple[tuple[int, float], ...] = ()
    """(step, success rate) of the evaluations on the way, where ``evaluation.every_steps`` asks for them."""

    def mean(self, name: str) -> float:
        """Of a metric over the steps that have it; nan if none does."""
        values = [step[name] for step in self.steps if name in step]
        return sum(values) / len(values) if values else float("nan")

    def total(self, name: str) -> float:
        return sum(step.get(name, 0.0) for step in self.steps)

    @property
    def gain(self) -> float:
        return self.success_after.rate - self.success_before.rate

    def as_dict(self, *metrics: str) -> dict[str, Any]:
        """For a file; of the steps only ``metrics``."""
        return asdict(self) | {"steps": [{n: v for n, v in step.items() if n in metrics} for step in self.steps]}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """Of what :meth:`as_dict` gave."""
        before, after = Rate(**told["success_before"]), Rate(**told["success_after"])
        between = tuple((int(step), float(rate)) for step, rate in told["between"])
        return cls(before, after, tuple(told["steps"]), told["elapsed_s"], between)


class Kept:
    """Results in a file of JSON lines, so that a benchmark that is stopped goes on where it was: what the file holds of
    the same key is not made again. Without a file everything is made."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._known: dict[str, dict[str, Any]] = {line["key"]: line["result"] for line in map(json.loads, lines)}

    def get(self, key: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """``key`` names everything that the result depends on; it and the result are what JSON can say."""
        name = json.dumps(key)
        if name not in self._known:
            self._known[name] = made = make()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": name, "result": made}) + "\n")
        return self._known[name]


def warm_started(recipe: str | Path, overrides: Sequence[str], seed: int, *, label: str = "warm start") -> Path:
    """The Hugging Face directory of the recipe's warm start with ``seed``; made if it is not there yet.

    ``overrides`` may be those of an arm: only what decides the warm start tells one from another. Raises RollError.
    """
    local = _local(recipe, overrides, seed)
    folder = rock_home() / "benchmarks" / "warm" / _warm_key(local)
    with _locked(folder):
        if not folder.is_dir():
            with _line(label) as say, tempfile.TemporaryDirectory(prefix="rock-warm-") as scratch:
                _make_warm(local, Path(scratch), folder, say)
    return folder


def play_arm(recipe: str | Path, overrides: Sequence[str], seed: int, start: Path, *, label: str = "arm") -> Arm:
    """Train from ``start``, as :func:`warm_started` returned it. Blocks; leaves nothing behind. Raises RollError."""
    base = [
        "model.source=checkpoint",
        f"model.path={json.dumps(str(start))}",
        "tokenizer.source=checkpoint",
        "warm_start.demonstrations=0",
        "checkpoint.every_steps=1000000",
        "checkpoint.event_log_mb=0",
    ]
    chosen = _local(recipe, [*base, *overrides], seed)
    if not chosen.evaluation.tasks:
        raise RollError("An arm is told by its evaluations: evaluation.tasks must be at least 1.")
    with _line(label) as say, tempfile.TemporaryDirectory(prefix="rock-arm-") as scratch:
        watch = _Watch(say, chosen.training.steps)
        summary = asyncio.run(_run(chosen, Path(scratch), watch))
    assert summary.success_before is not None
    assert summary.success_after is not None
    return Arm(
        summary.success_before, summary.success_after, tuple(watch.steps), summary.elapsed_s, tuple(watch.between)
    )


# --- the parts -------------------------------------------------------------------------------------------------------


def _local(recipe: str | Path, overrides: Sequence[str], seed: int) -> Recipe:
    """The recipe, to be played in this process."""
    env = load_recipe(recipe, overrides).env.name
    here = [
        "platform.mode=local",
        f"platform.local_bundle={json.dumps(str(_tasks_of(env)))}",
        "training.threads=1",
        "training.time_budget_s=0",
    ]
    return load_recipe(recipe, [*here, *overrides, f"training.seed={seed}"])


def _tasks_of(env: str) -> Path:
    """A folder with the environment's ``tasks.json`` and ``data/``, as its ``prepare`` writes them."""
    environment = EnvCatalog(rock_home()).get(env)
    folder = rock_home() / "benchmarks" / "tasks" / f"{env}-{environment.digest()}"
    with _locked(folder):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
            try:
                argv = [sys.executable, "-m", environment.manifest.bundle.prepare, "--out", str(partial)]
                subprocess.run(argv, check=True, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _warm_key(recipe: Recipe) -> str:
    learner = recipe.learner
    parts = [
        recipe.model_dump(mode="json", include={"model", "tokenizer", "prompt", "warm_start"}),
        [recipe.env.name, recipe.env.options, recipe.env.train_split, recipe.platform.local_bundle],
        [learner.beta1, learner.beta2, learner.weight_decay, learner.max_grad_norm, learner.micro_batch_tokens],
        [recipe.rollout.max_turns, recipe.training.seed],
        [inspect.getsource(code) for code in _CODE],
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{recipe.name}-{recipe.training.seed}-{digest}"


def _make_warm(recipe: Recipe, scratch: Path, folder: Path, say: Callable[[str], None]) -> None:
    training = recipe.training.model_copy(update={"steps": 0})
    evaluation = recipe.evaluation.model_copy(update={"tasks": 0})
    # Neither critics nor an attention reader: they begin where reinforcement learning does.
    plain = {"critic": type(recipe.critic)(), "algorithm": type(recipe.algorithm)()}
    bare = recipe.model_copy(update={"training": training, "evaluation": evaluation, **plain})
    directory = RunDirectory(scratch)
    asyncio.run(_run(bare, scratch, _Watch(say, 0)))
    latest = directory.checkpoints(1).latest()
    assert latest is not None
    words = Tokenizer.load(directory.tokenizer)
    model = assembly.make_model(bare, words)
    assembly.make_roles(bare, model).load(latest / "learner")
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        save_hf(model, partial, words)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


async def _run(recipe: Recipe, scratch: Path, watch: _Watch) -> Summary:
    directory = RunDirectory(scratch)
    directory.create(recipe, RunIdentity("run-arm"))
    sessions = play.make_local_sessions(recipe)
    cache = rock_home() / "demonstrations"
    try:
        return await train(recipe, directory, sessions, watch, _Phases(watch.say), demo_cache=cache)
    finally:
        await sessions.close()


class _Phases(Display):
    """Tells of imitation, which reports no metrics on the way."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__("", console=Console(quiet=True))
        self._say = say

    def advance(self, done: int, detail: str = "") -> None:
        super().advance(done, detail)
        self._say(f"{self._numbers.phase} {done}/{self._numbers.total} {detail}")


@dataclass(slots=True)
class _Watch:
    """A :class:`Reporter` that keeps the numbers of the steps."""

    say: Callable[[str], None]
    total: int
    steps: list[dict[str, float]] = field(default_factory=list)
    between: list[tuple[int, float]] = field(default_factory=list)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if "time/step_s" in values:
            self.steps.append(dict(values))
            self.say(f"step {step}/{self.total} success {values.get('rollout/success', float('nan')):.0%}")
        elif "eval/success" in values and 0 < step < self.total:
            self.between.append((step, values["eval/success"]))

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        return None

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        return None

    def check(self) -> None:
        return None

    async def close(self) -> None:
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes ``folder``; the others wait and find it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _line(label: str) -> Iterator[Callable[[str], None]]:
    """A line of progress on standard error: rewritten on a terminal, elsewhere one line when all is done."""
    began_s = last_s = time.monotonic()
    terminal = sys.stderr.isatty()
    latest = ""

    def say(text: str) -> None:
        nonlocal last_s, latest
        latest = text
        if terminal and time.monotonic() - last_s > 0.2:
            last_s = time.monotonic()
            sys.stderr.write(f"\r\x1b[K{label}: {text}")
            sys.stderr.flush()

    yield say
    before = "\r\x1b[K" if terminal else ""
    sys.stderr.write(f"{before}{label}: {latest.strip()}, {time.monotonic() - began_s:.0f} s\n")
