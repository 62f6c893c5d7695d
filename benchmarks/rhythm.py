"""Credit by attention rhythm (arXiv 2510.13554) against plain GRPO on the small Countdown: does it matter which tokens
count for more?

Seven arms from one and the same warm start, with the same budget of learner steps and episodes: no transform, the three
strategies, and three controls that amplify as many tokens, chosen at random, by the highest entropy, or by the lowest
FAI. Accuracy is that on held-out tasks after the last step; arms are compared seed by seed.

    python -m benchmarks.rhythm [--quick | --small] [--seeds 0,1,2,3,4] [--arms NAME,…] [--keep FILE] [--plot FILE.svg]
    python -m benchmarks.rhythm --cost [--settings NAME,…]   what a step with it costs, and no arms

The last line is one JSON object. What the paper found is the hypothesis here, not the result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._comparing import Estimate, difference, forest_svg, mean_rate
from benchmarks._measuring import machine
from benchmarks._rhythm_costs import SETTINGS, measure
from benchmarks._rhythm_costs import show as show_costs
from benchmarks._training import Arm, Kept, play_arm, warm_started

RECIPE, PLAIN = "countdown-tiny", "plain"
CREDIT = "algorithm.credit=[rhythm]"
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "random": (CREDIT, "rhythm.strategy=random"),
    "entropy": (CREDIT, "rhythm.strategy=entropy"),
    "local_chunk": (CREDIT, "rhythm.strategy=local_chunk"),
    "global_anchor": (CREDIT, "rhythm.strategy=global_anchor"),
    "coupled": (CREDIT, "rhythm.strategy=coupled"),
    "bottom": (CREDIT, "rhythm.strategy=bottom"),
}
HYPOTHESES = (
    ("coupled", PLAIN, "coupled credit learns better than plain GRPO (paper: 63.1 against 52.6)"),
    ("coupled", "random", "… and better than amplifying random tokens (55.0)"),
    ("coupled", "entropy", "… and than the most uncertain ones (57.7)"),
    ("coupled", "local_chunk", "… and than preplan tokens alone (59.9)"),
    ("coupled", "global_anchor", "… and than anchors alone (60.4)"),
    (PLAIN, "bottom", "amplifying what nobody attends to does harm (32.5)"),
)
"""(better, worse, in words)."""
FULL: tuple[str, ...] = ()
QUICK = ("training.steps=12", "rollout.groups_per_batch=8", "evaluation.tasks=100")
SMALL = ("training.steps=20", "evaluation.tasks=200")
SMALL_ARMS = (PLAIN, "random", "coupled", "bottom")
TOLD = ("followed", "followed_by_chance", "gamma_mean", "amplified", "time_s")
"""Metrics ``rhythm/…`` that are told of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one seed, few steps: shows that it runs, decides nothing")
    size.add_argument("--small", action="store_true", help=f"half the steps, and only {', '.join(SMALL_ARMS)}")
    parser.add_argument("--seeds", default="", help="comma-separated (default 0,1,2,3,4; with --quick 0)")
    parser.add_argument("--arms", default="", help=f"comma-separated, of {', '.join(ARMS)} (default all)")
    parser.add_argument("--keep", type=Path, help="file of results: added to; what it holds is not played again")
    parser.add_argument("--plot", type=Path, help="write the accuracies as an SVG")
    parser.add_argument("--cost", action="store_true", help="measure what a step with it costs; no arms")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of --cost, comma-separated (default: all)")
    args = parser.parse_args()
    if args.cost:
        settings = args.settings.split(",")
        if unknown := set(settings) - SETTINGS.keys():
            parser.error(f"--settings {', '.join(sorted(unknown))}: expected some of {', '.join(SETTINGS)}")
        show_costs(costs := measure(settings))
        print(json.dumps({"benchmark": "rhythm", "cost": costs, "machine": machine()}))
        return
    seeds = [int(s) for s in (args.seeds or ("0" if args.quick else "0,1,2,3,4")).split(",")]
    names = args.arms.split(",") if args.arms else list(SMALL_ARMS if args.small else ARMS)
    for name in names:
        if name not in ARMS:
            parser.error(f"there is no arm {name!r}; there are {', '.join(ARMS)}")
    budget = QUICK if args.quick else SMALL if args.small else FULL
    began_s, found = time.monotonic(), play(names, seeds, budget, args.keep)
    told = summary(found)
    show(told)
    if args.plot:
        args.plot.write_text(picture(found, len(seeds)), encoding="utf-8")
    more = {"budget": budget, "seeds": seeds, "minutes": round((time.monotonic() - began_s) / 60, 1)}
    print(json.dumps({"benchmark": "rhythm", **more, **told, "machine": machine()}))


def play(names: Sequence[str], seeds: Sequence[int], budget: Sequence[str], keep: Path | None) -> dict[str, list[Arm]]:
    """Every arm of a seed before the next seed, so that a run that is cut short has whole seeds."""
    found: dict[str, list[Arm]] = {name: [] for name in names}
    kept = Kept(keep)
    for seed in seeds:
        for name in names:
            arm = Arm.of(kept.get((name, seed, ARMS[name], budget), partial(_play_one, name, seed, budget)))
            print(f"seed {seed}  {name:<14} {arm.success_before} → {arm.success_after}", flush=True)
            found[name].append(arm)
    return found


def _play_one(name: str, seed: int, budget: Sequence[str]) -> dict[str, Any]:
    start = warm_started(RECIPE, budget, seed, label=f"seed {seed}, warm start")
    arm = play_arm(RECIPE, [*budget, *ARMS[name]], seed, start, label=f"seed {seed}, {name}")
    return arm.as_dict("time/step_s", *(f"rhythm/{metric}" for metric in TOLD))


def summary(found: Mapping[str, Sequence[Arm]]) -> dict[str, Any]:
    """Means with intervals of 95 % over seeds, what became of the hypotheses, and what reading attention costs."""
    after = {name: [arm.success_after for arm in arms] for name, arms in found.items()}
    verdicts: dict[str, Any] = {}
    for better, worse, words in HYPOTHESES:
        if better in after and worse in after:
            gap = difference(after[better], after[worse])
            verdicts[f"{better} > {worse}"] = {"says": words, "difference": gap.as_dict(), "verdict": ruling(gap)}
    arms: dict[str, dict[str, Any]] = {}
    for name, played in found.items():
        arms[name] = {"accuracy": mean_rate(after[name]).as_dict()}
        if name != PLAIN:
            arms[name] |= {key: _mean(played, f"rhythm/{key}") for key in ("gamma_mean", "amplified")}
            arms[name] |= {"s_per_step": _mean(played, "rhythm/time_s"), "share_of_step": share_of_step(played)}
            arms[name] |= {key: _mean(played, f"rhythm/{key}") for key in ("followed", "followed_by_chance")}
    before = [arms_of[0].success_before for arms_of in zip(*found.values(), strict=True)]
    return {"before": mean_rate(before).as_dict(), "arms": arms, "hypotheses": verdicts}


def ruling(gap: Estimate) -> str:
    """confirmed or refuted only where the whole interval is on one side."""
    return "confirmed" if gap.low > 0 else "refuted" if gap.high < 0 else "undecided"


def share_of_step(arms: Sequence[Arm]) -> float:
    """Seconds of reading attention over seconds of all steps."""
    return round(sum(a.total("rhythm/time_s") for a in arms) / sum(a.total("time/step_s") for a in arms), 4)


def _mean(arms: Sequence[Arm], name: str) -> float:
    return round(sum(arm.mean(name) for arm in arms) / len(arms), 4)


def show(told: Mapping[str, Any]) -> None:
    print(f"\nheld-out accuracy before: {_percent(told['before'])}")
    for name, arm in told["arms"].items():
        cost = f"   {arm['share_of_step']:.1%} of a step" if "share_of_step" in arm else ""
        print(f"  {name:<14} {_percent(arm['accuracy'])}{cost}")
    for pair, one in told["hypotheses"].items():
        print(f"{one['verdict']:<10} {pair:<24} {_percent(one['difference'], sign='+')}  {one['says']}")
    print()


def _percent(one: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * one['mean']:{sign}.1f} % [{100 * one['low']:{sign}.1f}, {100 * one['high']:{sign}.1f}]"


def picture(found: Mapping[str, Sequence[Arm]], seeds: int) -> str:
    rows = {name: [mean_rate([arm.success_after for arm in arms])] for name, arms in found.items()}
    base = mean_rate([arms[0].success_before for arms in zip(*found.values(), strict=True)]).mean
    subtitle = f"Held-out accuracy after RL, {seeds} seeds, 95 % intervals; dashed: before"
    return forest_svg("Credit by attention rhythm on countdown-tiny", subtitle, ["accuracy"], rows, base)


if __name__ == "__main__":
    main()
