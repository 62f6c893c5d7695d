"""AsyPPO (arXiv 2510.01656) against PPO on the small Countdown: what critics are worth, and what they cost.

Seven arms from one and the same warm start, with the same budget of learner steps and episodes. The symmetric critic
is a copy of the policy; a small one is a model of a seventh of its size that imitated the same demonstrations, as the
paper's critics are small checkpoints of the policy's family. Accuracy is that on held-out tasks after the last step;
arms are compared seed by seed. Costs are measured apart, on one thread and in processor time, one critic's turn after
the other's, so that a busy machine troubles all alike.

    python -m benchmarks.asyppo [--quick | --small] [--seeds 0,1,2,3,4] [--arms NAME,…] [--keep FILE] [--plot FILE.svg]

The last line is one JSON object. What the paper found is the hypothesis here, not the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._comparing import Estimate, difference, forest_svg, mean_rate
from benchmarks._critic_costs import measure, qwen3_table
from benchmarks._measuring import machine
from benchmarks._training import Arm, Kept, play_arm, warm_started
from roll_core.training.metrics import Rate

RECIPE, WARM = "countdown-asyppo", "countdown-tiny"
SMALL = (
    "model.hidden=64", "model.layers=2", "model.head_dim=16", "model.intermediate=128", "warm_start.lr=1.0e-2",
)  # fmt: skip
"""The small critics' trunk: what the recipe itself says of new ones."""

ONE, TWO = ("critic.count=1", "algorithm.credit=[]"), ("critic.count=2", "algorithm.credit=[]")
ARMS: dict[str, tuple[str, ...]] = {
    "ppo_symmetric": (*ONE, "critic.source=policy", "critic.lr=3.0e-4"),
    "ppo_small": ONE,
    "two_naive": (*TWO, "critic.partition=false"),
    "asyppo_no_masks": TWO,
    "asyppo_advantage_mask": (*TWO, "algorithm.credit=[advantage_mask]"),
    "asyppo_entropy_filter": (*TWO, "algorithm.credit=[entropy_filter]"),
    "asyppo": (*TWO, "algorithm.credit=[advantage_mask, entropy_filter]"),
}
"""Overrides of the recipe. The symmetric critic learns at a lower rate, as larger networks do; neither rate was
searched for."""

HYPOTHESES = (
    ("asyppo", "ppo_symmetric", "AsyPPO learns better than PPO with a symmetric critic (paper: +6 points at 4B)"),
    ("ppo_symmetric", "ppo_small", "one small critic is worse than the symmetric one"),
    ("asyppo_no_masks", "two_naive", "the data partition helps"),
    ("asyppo_advantage_mask", "asyppo_no_masks", "the advantage mask helps"),
    ("asyppo_entropy_filter", "asyppo_no_masks", "the entropy filter helps"),
    ("asyppo", "asyppo_no_masks", "both masks together help"),
)
"""(better, worse, in words)."""

QUICK = (
    "warm_start.demonstrations=2000", "warm_start.epochs=3",
    "training.steps=3", "critic.warmup_steps=1", "evaluation.tasks=24", "rollout.groups_per_batch=4",
)  # fmt: skip
SMALL_BUDGET = ("training.steps=20", "evaluation.tasks=200")
SMALL_ARMS = ("ppo_symmetric", "ppo_small", "two_naive", "asyppo")


# --- arms ------------------------------------------------------------------------------------------------------------


def summary(arm: Arm) -> dict[str, Any]:
    """What is kept of a run. Means of the critics' numbers are over the last quarter of the steps."""
    late = arm.steps[-max(1, len(arm.steps) // 4) :]

    def last(name: str) -> float | None:
        values = [step[name] for step in late if name in step]
        return round(statistics.fmean(values), 4) if values else None

    return {
        "before": arm.success_before.as_dict(),
        "after": arm.success_after.as_dict(),
        "curve": [round(step["rollout/success"], 3) for step in arm.steps if "rollout/success" in step],
        "explained_variance": last("critic/explained_variance"),
        "sigma_mean": last("critic/sigma_mean"),
        "agreement": last("critic/agreement"),
        "entropy": last("learner/entropy"),
        "critic_step_s": last("critic/step_s"),
        "skipped_updates": arm.total("critic/skipped_updates"),
        "elapsed_s": round(arm.elapsed_s, 1),
    }


def play(seeds: Sequence[int], names: Sequence[str], common: Sequence[str], keep: Path | None) -> dict[str, Any]:
    """Results by arm and seed, seed by seed, so that what is there at any time can be compared. What ``keep`` holds
    already of the same settings is not played again."""
    results: dict[str, dict[int, Any]] = {name: {} for name in names}
    kept = Kept(keep)
    for seed in seeds:
        for name in names:
            key = (name, seed, ARMS[name], common)
            results[name][seed] = kept.get(key, partial(_play_one, name, seed, common))
    return results


def _play_one(name: str, seed: int, common: Sequence[str]) -> dict[str, Any]:
    start, small = starts(seed, common)
    trunk = ["critic.source=checkpoint", f"critic.path={json.dumps(str(small))}"]
    arm = play_arm(RECIPE, [*trunk, *common, *ARMS[name]], seed, start, label=f"seed {seed}, {name}")
    return summary(arm)


def starts(seed: int, common: Sequence[str]) -> tuple[Path, Path]:
    """Directories of the policy and of the small model, both imitators of the same demonstrations."""
    warm = [override for override in common if override.startswith("warm_start.")]
    policy = warm_started(WARM, warm, seed, label=f"seed {seed}, policy's warm start")
    small = warm_started(WARM, [*warm, *SMALL], seed, label=f"seed {seed}, small critics' warm start")
    return policy, small


def report(results: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """Accuracy of each arm, and what became of each hypothesis on the seeds that both of its arms have."""
    after = {name: {seed: Rate(**r["after"]) for seed, r in by.items()} for name, by in results.items() if by}
    arms = {
        name: {"accuracy": mean_rate(list(by.values())).as_dict()}
        | {"seeds": {str(seed): results[name][seed] for seed in by}}
        for name, by in after.items()
    }
    told = []
    for better, worse, words in HYPOTHESES:
        line: dict[str, Any] = {"hypothesis": words, "better": better, "worse": worse}
        seeds = sorted(after.get(better, {}).keys() & after.get(worse, {}).keys())
        if seeds:
            gap = difference([after[better][s] for s in seeds], [after[worse][s] for s in seeds])
            line |= {"difference": gap.as_dict(), "verdict": verdict(gap)}
        told.append(line)
    return {"arms": arms, "hypotheses": told}


def verdict(gap: Estimate) -> str:
    """Of a hypothesis that says the difference is above 0. One seed tells of the evaluation's noise only."""
    if gap.n == 1:
        return "one seed decides nothing"
    return "shown" if gap.low > 0 else "refuted" if gap.high < 0 else "not shown"


def picture(results: Mapping[str, Mapping[int, Any]]) -> str:
    """An SVG of the arms' accuracies."""
    rates = {name: [Rate(**r["after"]) for r in by.values()] for name, by in results.items() if by}
    base = mean_rate(rates.get("ppo_symmetric") or next(iter(rates.values()))).mean
    rows = {name: [mean_rate(found)] for name, found in rates.items()}
    seeds = max(len(found) for found in rates.values())
    subtitle = (
        f"Held-out tasks solved after training, {seeds} seeds, 95 % intervals; the line is PPO's symmetric critic"
    )
    return forest_svg("AsyPPO on the small Countdown", subtitle, ["accuracy"], rows, base)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asyppo", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one seed, 3 steps: shows that it runs, decides nothing")
    size.add_argument("--small", action="store_true", help=f"half the steps, and only {', '.join(SMALL_ARMS)}")
    parser.add_argument("--seeds", default="", help="comma-separated; 0,1,2,3,4, or 0 with --quick")
    parser.add_argument("--arms", default="", help="comma-separated names (default: all)")
    parser.add_argument("--keep", type=Path, help="file of results: added to; what it holds is not played again")
    parser.add_argument("--plot", type=Path, help="write an SVG of the arms")
    args = parser.parse_args()
    names = args.arms.split(",") if args.arms else list(SMALL_ARMS if args.small else ARMS)
    if unknown := set(names) - ARMS.keys():
        parser.error(f"--arms {', '.join(sorted(unknown))}: expected some of {', '.join(ARMS)}")
    torch.set_num_threads(1)
    began_s = time.monotonic()
    seeds = [int(s) for s in (args.seeds or ("0" if args.quick else "0,1,2,3,4")).split(",")]
    common = QUICK if args.quick else SMALL_BUDGET if args.small else ()
    results = play(seeds, names, common, args.keep)
    costs = measure(RECIPE, *starts(seeds[0], common), {n: ARMS[n] for n in ("ppo_symmetric", "ppo_small", "asyppo")})
    if args.plot is not None:
        args.plot.write_text(picture(results), encoding="utf-8")
    told = {"benchmark": "asyppo", "budget": common, "seeds": seeds} | report(results) | {"costs": costs}
    told |= {"qwen3_memory_computed": qwen3_table(), "wall_s": round(time.monotonic() - began_s, 1)}
    told["cpu_s"] = round(time.process_time(), 1)
    print(json.dumps(told | {"machine": machine()}))


if __name__ == "__main__":
    main()
