"""Every policy loss on synchronous and on stale data: ``python -m benchmarks.algorithms [--quick | --small]``.

Countdown (recipe ``countdown-tiny``). For each seed a model is warm-started once by imitation; from it every arm, a
loss with an asynchronous ratio α, trains for the same number of learner steps on batches of the same size, with the
loss's own defaults and one learning rate for all, and is evaluated on the same held-out instances. α = 0 is synchronous
training. How stale the data really was is measured, not assumed: ``lag`` is the mean number of versions between the one
that an episode was initiated by and the one that was trained.

The verdict on a loss at some α > 0 is from the interval of its accuracy minus that of the same loss at α = 0, seed by
seed: it ``matches`` if that lies above minus the margin, it ``falls behind`` if it lies below 0 (and does not match),
else it is ``undecided``. The last line is one JSON object; a full run draws ``docs/img/algorithms.svg``.

Losses that are defined with an advantage of their own get it; all others GRPO's. Learning rates are not tuned for each
loss: who is best here says little, what staleness does to each is what is asked.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._comparing import Estimate, difference, forest_svg, mean_rate, verdict
from benchmarks._measuring import machine
from benchmarks._training import Kept, play_arm, warm_started
from roll_core.algorithms import POLICY_LOSSES
from roll_core.training.metrics import Rate

RECIPE = "countdown-tiny"
ADVANTAGES = {"dr_grpo": "dr_grpo", "rloo": "rloo", "reinforce_pp": "reinforce_pp"}
"""Of losses that are one half of a method of that name."""
MARGIN = 0.05
PICTURE = Path(__file__).parents[1] / "docs" / "img" / "algorithms.svg"


@dataclass(frozen=True, slots=True)
class Scale:
    losses: tuple[str, ...]
    alphas: tuple[float, ...]
    seeds: int
    steps: int
    evaluation: int


FULL = Scale(tuple(POLICY_LOSSES), (0.0, 2.0, 8.0), seeds=5, steps=40, evaluation=400)
SMALL = Scale(("ppo", "decoupled_ppo", "tis", "cispo", "topr"), (0.0, 8.0), seeds=5, steps=12, evaluation=200)
QUICK = Scale(("dapo", "tis"), (0.0, 8.0), seeds=1, steps=12, evaluation=200)


@dataclass(frozen=True, slots=True)
class Played:
    """One arm with one seed."""

    loss: str
    alpha: float
    seed: int
    before: Rate
    after: Rate
    lag: float
    token_lag: float
    lag_max: float
    clipped: float
    entropy_last: float
    samples: float
    elapsed_s: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> Played:
        """Of what ``asdict`` gave."""
        return cls(**told | {"before": Rate(**told["before"]), "after": Rate(**told["after"])})


def settings(loss: str, alpha: float, scale: Scale, extra: Sequence[str]) -> list[str]:
    return [
        f"algorithm.loss={loss}",
        f"algorithm.advantage={ADVANTAGES.get(loss, 'grpo')}",
        f"rollout.alpha={alpha:g}",
        f"training.steps={scale.steps}",
        f"evaluation.tasks={scale.evaluation}",
        *extra,
    ]


def play(loss: str, alpha: float, seed: int, scale: Scale, extra: Sequence[str]) -> Played:
    start = warm_started(RECIPE, extra, seed, label=f"warm start, seed {seed}")
    arm = play_arm(RECIPE, settings(loss, alpha, scale, extra), seed, start, label=f"{loss} α={alpha:g} seed {seed}")
    return Played(
        loss=loss,
        alpha=alpha,
        seed=seed,
        before=arm.success_before,
        after=arm.success_after,
        lag=arm.mean("staleness/mean"),
        token_lag=arm.mean("staleness/token_mean"),
        lag_max=max((step["staleness/max"] for step in arm.steps), default=0.0),
        clipped=arm.mean("learner/clip_fraction"),
        entropy_last=arm.steps[-1].get("learner/entropy", math.nan) if arm.steps else math.nan,
        samples=arm.total("rollout/episodes"),
        elapsed_s=arm.elapsed_s,
    )


def play_all(scale: Scale, extra: Sequence[str], keep: Path | None) -> list[Played]:
    """Seeds outermost: whenever it is stopped, what is there compares all losses. Kept arms are not played again."""
    done: list[Played] = []
    kept = Kept(keep)
    try:
        for seed in range(scale.seeds):
            for loss in scale.losses:
                for alpha in scale.alphas:
                    key = (seed, settings(loss, alpha, scale, extra))
                    done.append(Played.of(kept.get(key, partial(_played, loss, alpha, seed, scale, extra))))
                    _tell(done[-1])
    except KeyboardInterrupt:
        sys.stderr.write("stopped: what follows is of the arms that were finished\n")
    return done


def _played(*arm: Any) -> dict[str, Any]:
    return asdict(play(*arm))


def _tell(played: Played) -> None:
    sys.stderr.write(
        f"  {played.loss} α={played.alpha:g} seed {played.seed}: {played.before.rate:.1%} → {played.after.rate:.1%}, "
        f"lag {played.lag:.2f} (max {played.lag_max:.0f}), {played.elapsed_s:.0f} s\n"
    )


# --- what it says ----------------------------------------------------------------------------------------------------


def summarise(done: Sequence[Played], scale: Scale, margin: float) -> dict[str, Any]:
    """Numbers per loss and α, and the verdicts. Arms are compared on the seeds that both have."""
    losses: dict[str, Any] = {}
    for loss in scale.losses:
        found: dict[str, Any] = {}
        for alpha in scale.alphas:
            runs = {p.seed: p for p in done if (p.loss, p.alpha) == (loss, alpha)}
            if runs:
                found[f"{alpha:g}"] = _numbers(runs) | _against_sync(loss, alpha, runs, done, margin)
        if found:
            losses[loss] = found
    before = {p.seed: p.before for p in done}
    arms = len(scale.losses) * len(scale.alphas) * scale.seeds
    return {
        "benchmark": "algorithms",
        "recipe": RECIPE,
        "steps": scale.steps,
        "margin": margin,
        "seeds": len(before),
        "complete": len(done) == arms,
        "before": mean_rate(list(before.values())).as_dict() if before else None,
        "losses": losses,
    }


def _numbers(runs: dict[int, Played]) -> dict[str, Any]:
    def average(name: str) -> float:
        return round(sum(float(getattr(p, name)) for p in runs.values()) / len(runs), 3)

    names = ("lag", "token_lag", "lag_max", "clipped", "entropy_last", "elapsed_s")
    after = [runs[seed].after for seed in sorted(runs)]
    return {
        "success": mean_rate(after).as_dict(),
        "by_seed": {str(seed): round(runs[seed].after.rate, 4) for seed in sorted(runs)},
        **{name: average(name) for name in names},
    }


def _against_sync(
    loss: str, alpha: float, runs: dict[int, Played], done: Sequence[Played], margin: float
) -> dict[str, Any]:
    sync = {p.seed: p for p in done if (p.loss, p.alpha) == (loss, 0.0)}
    both = sorted(runs.keys() & sync.keys())
    if alpha == 0 or not both:
        return {}
    gap = difference([runs[s].after for s in both], [sync[s].after for s in both])
    return {"minus_sync": gap.as_dict(), "verdict": verdict(gap, margin)}


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'loss':<14} {'α':>3} {'lag':>5}  {'accuracy':<22} {'minus sync':<24} verdict"]
    for loss, by_alpha in found["losses"].items():
        for alpha, numbers in by_alpha.items():
            gap = numbers.get("minus_sync")
            lines.append(
                f"{loss:<14} {alpha:>3} {numbers['lag']:>5.2f}  {_interval(numbers['success']):<22} "
                f"{_interval(gap, signed=True) if gap else '':<24} {numbers.get('verdict', '')}".rstrip()
            )
    return "\n".join(lines)


def _interval(numbers: dict[str, float], *, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    mean, low, high = (format(100 * numbers[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}] %"


def picture(found: dict[str, Any], scale: Scale) -> str:
    rows: dict[str, list[Estimate | None]] = {
        loss: [
            Estimate(**by_alpha[f"{alpha:g}"]["success"]) if f"{alpha:g}" in by_alpha else None
            for alpha in scale.alphas
        ]
        for loss, by_alpha in found["losses"].items()
    }
    series = ["synchronous" if alpha == 0 else f"α = {alpha:g}" for alpha in scale.alphas]
    subtitle = (
        f"held-out success after {found['steps']} steps, mean and 95 % interval over {found['seeds']} seeds; "
        "dashed: before"
    )
    return forest_svg("Countdown: policy losses on stale data", subtitle, series, rows, found["before"]["mean"])


# --- the command -----------------------------------------------------------------------------------------------------


def _losses(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in POLICY_LOSSES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(POLICY_LOSSES)}")
    return names


def _alphas(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, such as 0,2,8") from error
    return values


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=(__doc__ or "").splitlines()[0])
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two losses, α = 0 and 8, one seed: four minutes")
    size.add_argument("--small", action="store_true", help=f"{', '.join(SMALL.losses)}, α = 0 and 8, 12 steps")
    made.add_argument("--losses", type=_losses, help="some of the losses, by commas (default: all)")
    made.add_argument("--alphas", type=_alphas, help="asynchronous ratios, by commas (default: 0,2,8)")
    made.add_argument("--seeds", type=int, help=f"number of seeds (default: {FULL.seeds})")
    made.add_argument("--steps", type=int, help=f"learner steps of an arm (default: {FULL.steps})")
    made.add_argument("--margin", type=float, default=MARGIN, help=f"of the verdict (default: {MARGIN})")
    made.add_argument("--keep", type=Path, help="file of finished arms: added to; what it holds is not played again")
    made.add_argument("--svg", type=Path, help="where to draw the picture (default of a full run: docs/img)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    base = QUICK if args.quick else SMALL if args.small else FULL
    scale = Scale(
        args.losses or base.losses,
        args.alphas or base.alphas,
        args.seeds or base.seeds,
        args.steps or base.steps,
        base.evaluation,
    )
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Ctrl-C: what is done is told
    began_s = time.monotonic()
    done = play_all(scale, args.set, args.keep)
    if not done:
        return 1
    found = summarise(done, scale, args.margin)
    sys.stderr.write(table(found) + "\n")
    svg = args.svg or (PICTURE if scale == FULL and found["complete"] else None)
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(picture(found, scale), encoding="utf-8")
    print(json.dumps(found | {"total_s": round(time.monotonic() - began_s, 1)} | machine()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
