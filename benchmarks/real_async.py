"""Asynchronous against synchronous training, for real: ``python -m benchmarks.real_async [--quick]``.

ALFWorld in sandboxes of a platform of its own (Docker, else bubblewrap), a model of half a million parameters, the
production trainer. Every step of an environment takes max(0, N(1, .5)) s longer, as one that works would. From the same
warm start the same number of samples is trained on:

- ``sync``: α = 0. A batch is played to its end, then trained on, then its weights are loaded; no redundancy;
- ``async``: α = 2, one group and one member more than needed, the first to finish make the batch; as many sandboxes as
  it may have samples in flight, (1+α)N;
- ``async_same`` (not with --quick): as ``async``, in as many sandboxes as ``sync`` can use.

``speedup`` is the ratio of the wall time of training. Evaluation, on held-out games and without the latency, is not in
it. Both arms run the same code on the same machine one after the other, in turned order each round, and most of their
time is injected waiting, which load does not change; what load slows is the computing, of which there is as much in
both: on a busy machine the ratio is too low. The last line is one JSON object.

Groups without signal are trained on too: how many there are is luck, and the arms are to do the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._measuring import home, machine, platform
from benchmarks._slow import Latency, SlowSessions, leases
from rock.domain.errors import RockError
from rock.domain.outcome import LedgerState, Void
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker_daemon import check_docker
from rock.sdk import Rock, RunStatus
from rock.sdk.home import rock_home
from roll_core.config import Recipe, load_recipe, to_yaml
from roll_core.rollout.reuse import ReusedSessions
from roll_core.rollout.sessions import SessionFactory
from roll_core.rollout.work import Booking
from roll_core.training.metrics import Rate
from roll_core.training.progress import Display
from roll_core.training.reporting import FileReporter, Phase, Reporters
from roll_core.training.run import RunDirectory, RunIdentity, train

ENV = "alfworld"
LATENCY = Latency(mean_s=1.0, std_s=0.5)
SPARE_SANDBOXES = 4
"""Kept ready to take the place of those whose episode was cancelled in the middle of a step."""
PUBLISHED = 1.58
"""Environment-level asynchrony on ALFWorld, arXiv 2510.11345."""


@dataclass(frozen=True, slots=True)
class Scale:
    steps: int
    groups: int
    members: int
    evaluation: int
    rounds: int
    same: bool
    """Whether to measure ``async_same``, too."""

    @property
    def batch(self) -> int:
        """Its samples: as many sandboxes as α = 0 can use."""
        return self.groups * self.members

    def sandboxes(self, alpha: float) -> int:
        """Of the asynchronous arm: as many as it may have samples in flight, the redundant ones left out."""
        return math.floor((1 + alpha) * self.batch)


FULL = Scale(steps=12, groups=4, members=8, evaluation=200, rounds=2, same=True)
QUICK = Scale(steps=5, groups=2, members=8, evaluation=60, rounds=1, same=False)

SHORT = (
    # A smaller model, and episodes of a dozen turns. The warm start is made once and kept.
    "model.layers=2",
    "rollout.max_turns=12",
    "rollout.episodes_per_sandbox=64",
    "warm_start.demonstrations=600",
    "warm_start.epochs=10",
    "warm_start.batch_size=8",
    # Engine and learner on a core each; a busy core would hold up a thread on the other.
    "training.threads=1",
    "algorithm.filter_zero_variance=false",
    "training.time_budget_s=0",
    "checkpoint.every_steps=1000000",
)


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    settings: tuple[str, ...]


def arms(scale: Scale, alpha: float) -> tuple[Arm, ...]:
    redundant = (
        f"rollout.alpha={alpha}",
        "rollout.order=finished",
        "rollout.extra_groups=1",
        "rollout.extra_members=1",
    )
    synchronous = ("rollout.alpha=0", "rollout.order=opened", "rollout.extra_groups=0", "rollout.extra_members=0")
    found = [
        Arm("sync", (*synchronous, f"rollout.concurrency={scale.batch}")),
        Arm("async", (*redundant, f"rollout.concurrency={scale.sandboxes(alpha)}")),
    ]
    if scale.same:
        found.append(Arm("async_same", (*redundant, f"rollout.concurrency={scale.batch}")))
    return tuple(found)


def common(scale: Scale) -> list[str]:
    return [
        *SHORT,
        f"rollout.group_size={scale.members}",
        f"rollout.groups_per_batch={scale.groups}",
        f"training.steps={scale.steps}",
        f"evaluation.tasks={scale.evaluation}",
    ]


# --- one arm ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """A :class:`Reporter` that keeps the numbers, and makes the environments slow while the run trains."""

    slow: SlowSessions
    steps: list[dict[str, float]] = field(default_factory=list)
    accounts: Counter[LedgerState] = field(default_factory=Counter)
    tokens: Counter[LedgerState] = field(default_factory=Counter)
    sandboxes: set[str] = field(default_factory=set)
    voids: Counter[str] = field(default_factory=Counter)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if "time/step_s" in values:
            self.steps.append(values | {"load": os.getloadavg()[0]})

    def episode(self, booking: Booking, *, phase: Phase, split: str) -> None:
        self.accounts[booking.state] += 1
        if booking.trajectory is not None:
            self.tokens[booking.state] += booking.trajectory.generated_tokens
            self.sandboxes.add(booking.trajectory.sandbox_id)
            if isinstance(booking.trajectory.outcome, Void):
                self.voids[booking.trajectory.outcome.cause] += 1

    async def status(self, status: RunStatus, detail: str = "", summary: dict[str, Any] | None = None) -> None:
        self.slow.on = status == "training"

    def check(self) -> None:
        return None

    async def close(self) -> None:
        self.slow.on = False


@dataclass(frozen=True, slots=True)
class Measured:
    arm: str
    round: int
    wall_s: float
    steps: int
    samples: int
    before: Rate
    after: Rate
    numbers: dict[str, Any]


async def run_arm(
    arm: str,
    round_: int,
    recipe: Recipe,
    start: Path,
    folder: Path,
    sessions: SessionFactory,
    slow: SlowSessions,
    console: Console,
) -> Measured:
    """Train from the warm start kept in ``start``, in ``folder``. ``sessions`` are made of ``slow``."""
    shutil.copytree(start, folder)
    directory = RunDirectory(folder)
    directory.create(recipe, directory.identity())
    slow.seed(round_)
    watch = Watch(slow)
    reporter = Reporters(FileReporter(folder), watch)
    cpu_s = time.process_time()
    with Display(f"{arm} {round_ + 1}", console=console) as display:
        try:
            summary = await train(recipe, directory, sessions, reporter, display, demo_cache=folder)
        finally:
            await reporter.close()
    assert summary.success_before is not None
    assert summary.success_after is not None
    return Measured(
        arm,
        round_,
        sum(values["time/step_s"] for values in watch.steps),
        len(watch.steps),
        watch.accounts[LedgerState.TRAINED],
        summary.success_before,
        summary.success_after,
        _numbers(watch) | {"cpu_s": round(time.process_time() - cpu_s, 1)},
    )


def _numbers(watch: Watch) -> dict[str, Any]:
    steps = watch.steps
    total_s = sum(values["time/step_s"] for values in steps)

    def share(name: str) -> float:
        return round(sum(values[name] * values["time/step_s"] for values in steps) / total_s, 3)

    def seconds(name: str) -> float:
        return round(sum(values[name] for values in steps) / total_s, 3)

    trained, ended = watch.tokens[LedgerState.TRAINED], sum(watch.tokens.values())
    evaluated = watch.tokens[LedgerState.EVALUATED]
    return {
        "step_s": [round(values["time/step_s"], 1) for values in steps],
        "staleness_max": max(values["staleness/max"] for values in steps),
        "staleness_mean": round(statistics.fmean(values["staleness/mean"] for values in steps), 2),
        "in_flight": round(statistics.fmean(values["rollout/in_flight"] for values in steps), 1),
        "turns": round(statistics.fmean(v["rollout/turns"] for v in steps if "rollout/turns" in v), 1),
        "sandboxes_used": len(watch.sandboxes),
        "waits_for_batch": seconds("time/batch_wait_s"),
        "learns": seconds("time/learner_s"),
        "waits_for_weights": seconds("time/publish_wait_s"),
        "engine_busy": share("engine/busy"),
        "bubble": {name.removeprefix("bubble/"): share(name) for name in steps[0] if name.startswith("bubble/")},
        "goodput": round(trained / max(1, ended - evaluated), 3),
        "accounts": {state.value: count for state, count in watch.accounts.items()},
        "voids": dict(watch.voids),
        "load_1m": round(statistics.fmean(values["load"] for values in steps), 1),
    }


# --- what comes before -----------------------------------------------------------------------------------------------


async def warm_start(recipe: Recipe, sessions: SessionFactory, folder: Path, console: Console) -> Path:
    """A run's directory with the warm-started model as its checkpoint, kept for the next time nothing has changed."""
    kept = folder / hashlib.sha256(f"{to_yaml(recipe)}{await sessions.digest()}".encode()).hexdigest()[:16]
    with _made_once(kept) as partial:
        if partial is not None:
            directory = RunDirectory(partial)
            directory.create(recipe, RunIdentity("run-warm"))
            with Display("warm start", console=console) as display:
                quiet = Reporters()
                await train(recipe, directory, sessions, quiet, display, demo_cache=folder / "demonstrations")
    return kept


@contextlib.contextmanager
def _made_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which becomes ``folder`` if nothing goes wrong; None if that is there already."""
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


async def lease_all(sessions: ReusedSessions, count: int, task: str) -> None:
    """Take ``count`` sandboxes and keep them: the arms are not to wait for containers to start."""
    async with contextlib.AsyncExitStack() as stack:
        for session in await asyncio.gather(*(stack.enter_async_context(sessions.open(task, 0)) for _ in range(count))):
            with contextlib.suppress(RockError):  # one that was lost while nobody played in it is replaced later
                await session.reset(task, 0)


# --- all of it -------------------------------------------------------------------------------------------------------


async def measure(url: str, scale: Scale, alpha: float, folder: Path, kept: Path, console: Console) -> dict[str, Any]:
    chosen = arms(scale, alpha)
    most = scale.sandboxes(alpha)
    recipe = load_recipe("alfworld-tiny", [*common(scale), f"rollout.concurrency={most}"])
    async with Rock(url) as rock:
        slow = SlowSessions(leases(rock, recipe), LATENCY)
        sessions = ReusedSessions(slow, recipe.rollout.episodes_per_sandbox)
        try:
            tasks = await sessions.tasks(recipe.env.train_split)
            await lease_all(sessions, most, tasks[0])
            warm = load_recipe("alfworld-tiny", [*SHORT, "training.steps=0", "evaluation.tasks=0"])
            start = await warm_start(warm, sessions, kept, console)
            results = []
            for round_ in range(scale.rounds):
                for arm in chosen if round_ % 2 == 0 else chosen[::-1]:
                    settings = [*common(scale), *arm.settings, f"training.seed={round_}"]
                    where = folder / f"{arm.name}-{round_}"
                    await lease_all(sessions, most, tasks[0])
                    ready = load_recipe("alfworld-tiny", settings)
                    results.append(await run_arm(arm.name, round_, ready, start, where, sessions, slow, console))
        finally:
            await sessions.close()
    return summarise(results, alpha)


def summarise(results: Sequence[Measured], alpha: float) -> dict[str, Any]:
    by_arm: dict[str, list[Measured]] = {}
    for result in results:
        by_arm.setdefault(result.arm, []).append(result)
    wall_s = {arm: sum(m.wall_s for m in runs) for arm, runs in by_arm.items()}
    samples = {arm: sum(m.samples for m in runs) for arm, runs in by_arm.items()}
    found: dict[str, Any] = {
        "benchmark": "real_async",
        "alpha": alpha,
        "speedup": round(wall_s["sync"] / wall_s["async"], 2),
    }
    if "async_same" in wall_s:
        found["speedup_same_sandboxes"] = round(wall_s["sync"] / wall_s["async_same"], 2)
    walls = {(m.arm, m.round): m.wall_s for m in results}
    found["speedup_by_round"] = [round(walls["sync", m.round] / m.wall_s, 2) for m in by_arm["async"]]
    found["published"] = PUBLISHED
    found["success_before"] = by_arm["sync"][0].before.as_dict()
    for arm, runs in by_arm.items():
        found[f"{arm}_success"] = pooled([m.after for m in runs]).as_dict()
    found |= {
        "samples": samples["sync"],
        "same_samples": len(set(samples.values())) == 1,
        "steps": sum(m.steps for m in by_arm["sync"]),
        "wall_s": {arm: round(value, 1) for arm, value in wall_s.items()},
        "latency_s": {"mean": LATENCY.mean_s, "std": LATENCY.std_s},
        "runs": [{"arm": m.arm, "round": m.round, "wall_s": round(m.wall_s, 1)} | m.numbers for m in results],
    }
    return found


def pooled(rates: Sequence[Rate]) -> Rate:
    return Rate.of(sum(round(rate.rate * rate.n) for rate in rates), sum(rate.n for rate in rates))


def run(scale: Scale, runtime: str, alpha: float, console: Console) -> dict[str, Any]:
    user_home = rock_home()
    build_environment(EnvCatalog(user_home), ENV, image=runtime == "docker", on_line=console.print)
    most = scale.sandboxes(alpha)
    began_s = time.monotonic()
    with home() as directory:
        (directory / "envs").symlink_to(user_home / "envs")  # building takes a minute; it is done once
        capacity = 2 * most  # a reset that is unusually slow is raced by a second sandbox
        with platform(directory, runtime=runtime, capacity=capacity, pools={ENV: SPARE_SANDBOXES}) as url:
            kept = user_home / "benchmarks" / "real_async"
            found = asyncio.run(measure(url, scale, alpha, directory / "arms", kept, console))
    return found | {"runtime": runtime, "total_s": round(time.monotonic() - began_s, 1)} | machine()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_async", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round of a few small steps: three minutes")
    parser.add_argument("--runtime", choices=("docker", "bubblewrap"), help="default: Docker where it runs")
    parser.add_argument("--alpha", type=float, default=2.0, help="of the asynchronous arm (default: 2)")
    args = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the platform is stopped
    runtime = args.runtime or ("docker" if check_docker().ok else "bubblewrap")
    print(json.dumps(run(QUICK if args.quick else FULL, runtime, args.alpha, console)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
