"""Asynchronous against synchronous rollout and training, in simulation: ``python -m benchmarks.async_speedup``.

The production scheduler, machine, router, episodes and pipeline run under a virtual clock on the workloads of
``benchmarks.workloads``; engines, environments and learner are simulated. Every ratio is baseline seconds ÷ our
seconds, the mean over the seeds of each seed's own ratio, on identical samples. ``--quick``: fewer seeds and steps.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from benchmarks._speedup_report import Row, report, summary
from benchmarks.workloads import SEEDS, w1, w2, w3, w4, w5, w5_agentic
from rock.domain.outcome import Completed, LedgerState
from rock.domain.outcome import Outcome as EpisodeOutcome
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.roofline import efficiency
from roll_core.rollout.scheduler import Scheduler, Slots
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.tuning import Advice, EngineCurve, Measured, ideal_step_s, split_within_window
from roll_core.rollout.work import EpisodeSpec
from roll_core.simulation.baselines import barrier_s, rounds_s, synchronous_s, turn_seed
from roll_core.simulation.bounds import clairvoyant_s, redundant_s, work_s
from roll_core.simulation.run import Outcome, Policy, simulate
from roll_core.simulation.workload import Workload
from roll_core.types import Trajectory

WORKERS = (16, 32, 64, 128)
AUTO_ALPHA = 8
"""Self-tuning may go so far: the largest α with which every corrected loss was published to train as well as α = 0."""


# --- one seed of one workload: baseline and ours ---------------------------------------------------------------------


def replication(prompts: int, candidates: int, seed: int) -> Row:
    workload = w1(prompts, candidates)
    ours = simulate(workload, Policy(), seed=seed)
    bound = clairvoyant_s(ours.lengths, workload.engine, workload.engines)
    return _row(simulate(workload, Policy(replicate=False), seed=seed).elapsed_s, ours.elapsed_s, bound_s=bound)


def queueing(prompts: int, redundant: int, seed: int) -> Row:
    workload = w2(prompts)
    ours = simulate(workload, Policy(order="finished", extra_groups=redundant), seed=seed)
    # Without luck in the draw, half of the prompts that must be generated have no signal.
    bound = work_s(workload, workload.samples / workload.environment.keep * workload.lengths.mean)
    return _row(rounds_s(workload, seed), ours.elapsed_s, bound_s=bound, goodput=ours.goodput)


def environments(sigma_s: float, seed: int) -> Row:
    workload = w3(sigma_s)
    return _row(barrier_s(workload, seed), simulate(workload, Policy(), seed=seed).elapsed_s)


def redundancy(mild: bool, groups: int, members: int, seed: int) -> Row:
    workload = w4(mild=mild)
    policy = Policy(order="finished", extra_groups=groups, extra_members=members)
    ours = simulate(workload, policy, seed=seed)
    base_s = simulate(workload, Policy(order="finished"), seed=seed).elapsed_s
    bound = redundant_s(alone_s(workload, groups, members, seed), workload.groups, workload.group_size)
    return _row(base_s, ours.elapsed_s, goodput=ours.goodput, bound_s=bound)


def alone_s(workload: Workload, groups: int, members: int, seed: int) -> list[list[float]]:
    """When each member of each group would end if it had an engine to itself."""
    wanted, size = workload.groups + groups, workload.group_size + members
    settings = MachineSettings(0.0, size, wanted, order="finished", filter_zero_variance=False, seed=seed)
    machine = RolloutMachine(settings, TaskQueue(["task"], seed))
    ends: dict[str, list[float]] = {}
    for spec in iter(machine.next_start, None):
        group = ends.setdefault(spec.group_id, [])
        turns = range(workload.environment.turns)
        waits_s = sum(workload.environment.latency(spec.seed, len(group), turn) for turn in turns)
        tokens = sum(workload.lengths.tokens(spec.seed, turn_seed(spec, turn)) for turn in turns)
        group.append(waits_s + tokens * workload.engine.token_s(1))
    return list(ends.values())


def end_to_end(workers: int, alpha: float, quick: bool, seed: int) -> Row:
    workload = w5(workers)
    advice = tuned(workload, alpha)
    skip, steps = window(alpha, quick)
    ours = simulate(workload, Policy(alpha, train_workers=advice.train_workers, fill=1.0), seed=seed, steps=steps)
    return _steady(workload, ours, skip, seed, train_workers=float(advice.train_workers))


def window(alpha: float, quick: bool) -> tuple[int, int]:
    """Steps to leave out and steps to play. Where the learner waits for the oldest sample it does so once in α + 1
    steps, so only whole cycles of those are measured; the first fills the pipeline."""
    cycle = int(alpha) + 1
    if cycle > 4:  # a window so long that the learner does not wait
        return cycle, cycle + (4 if quick else 8)
    return cycle, cycle * (2 if quick else 3)


def end_to_end_drop(workers: int, alpha: float, quick: bool, seed: int) -> Row:
    """The other policy: take what is finished, drop what becomes too old. Long samples are under-represented."""
    workload = w5(workers)
    advice = tuned(workload, AUTO_ALPHA)
    policy = Policy(alpha, order="finished", train_workers=advice.train_workers, fill=1.0)
    skip, steps = window(alpha, quick)
    ours = simulate(workload, policy, seed=seed, steps=steps)
    trained = ours.tokens[LedgerState.TRAINED] / ours.episodes[LedgerState.TRAINED]
    return _steady(workload, ours, skip, seed, mean_trained_tokens=trained, mean_tokens=workload.lengths.mean)


AGENTIC_TRAIN_WORKERS = 21
"""Of 32, chosen by hand on one seed, near the best split for a rollout that waits for environments, with a step of
(L_g + N·μ_t/(βK) + t_sync)/(α + 1)."""


def agentic(extra_members: int, quick: bool, seed: int) -> Row:
    workload = w5_agentic()
    policy = Policy(2.0, train_workers=AGENTIC_TRAIN_WORKERS, extra_members=extra_members)
    skip, steps = window(2.0, quick)
    ours = simulate(workload, policy, seed=seed, steps=steps)
    row = _steady(workload, ours, skip, seed)
    return row | {"over_barrier": (barrier_s(workload, seed) + row["train_s"] + 5.0) / row["ours_s"]}


def alpha_zero(seed: int) -> Row:
    """α = 0 by the production loop against the plain synchronous loop."""
    workload = w5_agentic()
    ours = simulate(workload, Policy(0.0), seed=seed, steps=4)
    return _row(synchronous_s(workload, seed, 4), ours.elapsed_s / 4)


def tuned(workload: Workload, alpha: float) -> Advice:
    engine, lengths = workload.engine, workload.lengths
    curve = EngineCurve(engine.a_s, engine.c_s, engine.slots, lengths.mean, lengths.cap)
    return split_within_window(curve, alpha, **known(workload))


def known(workload: Workload) -> dict[str, Any]:
    return {
        "workers": workload.engines, "samples": workload.samples, "train_s": workload.train_s, "sync_s": workload.sync_s
    }  # fmt: skip


def _row(base_s: float, ours_s: float, **more: float) -> Row:
    return {"base_s": base_s, "ours_s": ours_s, "ratio": base_s / ours_s, **more}


def _steady(workload: Workload, ours: Outcome, skip: int, seed: int, **more: float) -> Row:
    step_s = ours.step_s(skip, workload.samples)
    cost = workload.environment.turns * workload.lengths.mean * workload.engine.full_token_s
    ideal_s = ideal_step_s(Measured(generate_s=cost, longest_s=0.0, **known(workload)))
    row = _row(synchronous_s(workload, seed, 1), step_s, eta=efficiency(ideal_s, step_s), goodput=ours.goodput, **more)
    row |= {f"bubble_{cause}": share for cause, share in ours.worker_seconds.bubble().items()}
    row["train_s"] = workload.samples * workload.train_s / workload.engines
    row["staleness_max"] = float(max(s.staleness_max for s in ours.steps))
    return row


# --- the scheduler's own cost ----------------------------------------------------------------------------------------


class _Instant:
    """A player whose episodes take no time: what is left is the scheduler's and the machine's work."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.spec = spec

    async def play(self) -> Trajectory:
        return self.so_far(Completed(1.0, True))

    def so_far(self, outcome: EpisodeOutcome) -> Trajectory:
        spec = self.spec
        return Trajectory(spec.id, spec.group_id, "e", spec.task, spec.seed, spec.init_version, (), outcome)


class _InstantPlayer:
    def episode(self, spec: EpisodeSpec) -> _Instant:
        return _Instant(spec)


def scheduler_cpu_ms(batches: int = 6) -> float:
    """CPU milliseconds of scheduler, machine, ledger and asyncio's tasks per trajectory, 12,288 of them at once."""

    async def main() -> float:
        settings = MachineSettings(2.0, group_size=16, groups_per_batch=256, filter_zero_variance=False)
        machine = RolloutMachine(settings, TaskQueue(["task"], 0))
        guard = OutageGuard(free=1 << 30, rng=random.Random(0))
        player: Any = _InstantPlayer()
        scheduler = Scheduler(machine, player, Slots(4096), guard, outage_s=1e9, on_booked=lambda booking: None)
        gc.collect()
        begin = time.process_time()
        scheduler.resume()
        for version in range(batches):
            groups = await scheduler.next_batch()
            scheduler.carry_out(machine.trained(groups))
            scheduler.published(version + 1)
        await scheduler.close()
        return 1e3 * (time.process_time() - begin) / machine.ledger.dispatched

    return asyncio.run(main())


# --- the whole -------------------------------------------------------------------------------------------------------


def jobs(quick: bool) -> dict[str, tuple[Callable[[int], Row], int]]:
    """What to run by key, and over how many seeds."""
    few, many = (2, 1) if quick else (len(SEEDS), len(SEEDS))
    runs: dict[str, tuple[Callable[[int], Row], int]] = {}
    for prompts, candidates in ((32, 16), (64, 16), (16, 64)):
        runs[f"w1_{prompts}x{candidates}"] = partial(replication, prompts, candidates), few
    for prompts in (8, 128):
        runs[f"w2_{prompts}x8"] = partial(queueing, prompts, 16), few
        runs[f"w2_{prompts}x8_without_redundancy"] = partial(queueing, prompts, 0), few
    runs["w2_128x8_64_redundant"] = partial(queueing, 128, 64), few
    for sigma_s in (1, 5, 10):
        runs[f"w3_sigma{sigma_s}"] = partial(environments, float(sigma_s)), few
    for mild, name in ((False, "w4"), (True, "w4_mild")):
        for groups, members in ((4, 0), (0, 1), (4, 1), (16, 4)):
            key = name if (groups, members) == (4, 1) else f"{name}_{32 + groups}x{8 + members}"
            runs[key] = partial(redundancy, mild, groups, members), 5
    for workers in (16, 128) if quick else WORKERS:
        runs[f"w5_alpha2_{workers}"] = partial(end_to_end, workers, 2.0, quick), many
        runs[f"w5_auto_{workers}"] = partial(end_to_end, workers, auto_alpha(workers), quick), many
    runs["w5_alpha2_128_drop"] = partial(end_to_end_drop, 128, 2.0, quick), many
    runs["w5_agentic"] = partial(agentic, 1, quick), few
    runs["w5_agentic_without_redundancy"] = partial(agentic, 0, quick), few
    runs["alpha0"] = alpha_zero, few
    return runs


def auto_alpha(workers: int) -> float:
    """The smallest α with which the tuned step is within 2 % of what the largest allowed one gives."""
    predicted = {alpha: _predicted_s(workers, alpha) for alpha in range(2, AUTO_ALPHA + 1)}
    return float(min(alpha for alpha, step_s in predicted.items() if step_s <= 1.02 * predicted[AUTO_ALPHA]))


def _predicted_s(workers: int, alpha: float) -> float:
    return tuned(w5(workers), alpha).predicted_s


def run(quick: bool, only: str = "", processes: int = 0) -> dict[str, list[Row]]:
    chosen = {key: job for key, job in jobs(quick).items() if key.startswith(only)}
    # Many small objects that live long: Python's collector would go through them again and again.
    with ProcessPoolExecutor(processes or os.cpu_count(), initializer=gc.set_threshold, initargs=(200_000,)) as pool:
        futures = {
            key: [pool.submit(job, seed) for seed in SEEDS[:count]] for key, (job, count) in reversed(chosen.items())
        }
        rows: dict[str, list[Row]] = {}
        for key in chosen:
            rows[key] = [future.result() for future in futures[key]]
            print(f"{key}: {summary(rows[key])['ratio']}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two seeds (one for W5), fewer steps, fewer workers' counts"
    )
    parser.add_argument("--only", default="", help="only the workloads whose key begins so, e.g. w2")
    parser.add_argument("--processes", type=int, default=0, help="0: one for each CPU")
    options = parser.parse_args()
    began = time.monotonic()
    result = report(run(options.quick, options.only, options.processes))
    if "w5_rlvr_auto" in result:
        result["w5_auto_alpha"] = {str(workers): auto_alpha(workers) for workers in WORKERS}
    result["scheduler_cpu_ms"] = round(min(scheduler_cpu_ms() for _ in range(2)), 4)
    result["seeds"] = list(SEEDS)
    result["quick"] = options.quick
    result["benchmark_s"] = round(time.monotonic() - began, 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
