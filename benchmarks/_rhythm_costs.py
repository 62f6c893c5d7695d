"""What reading attention costs in a real run: its seconds beside those of the step, on and off the critical path.

Each setting is a short run through the production trainer, from a policy that imitated little: what is measured is
time, not skill. So that such a policy's batches fill, groups without signal are kept; in a batch without any advantage
every row is read, so the cost is an upper bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks._training import Arm, play_arm, warm_started
from roll_core.config import Recipe, load_recipe
from roll_core.models.attention import chosen_layers

_ALL = ("algorithm.credit=[rhythm]", "algorithm.filter_zero_variance=false", "evaluation.tasks=1")
_DEEP = (
    "model.layers=24", "model.hidden=64", "model.head_dim=16", "model.intermediate=128",
    "warm_start.demonstrations=1000", "warm_start.epochs=2", "warm_start.lr=5.0e-3",
)  # fmt: skip
SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "countdown": ("countdown-tiny", ("training.steps=6", "warm_start.demonstrations=1000")),
    "countdown_slow": (
        "countdown-tiny",
        ("training.steps=6", "warm_start.demonstrations=1000", "rollout.concurrency=8"),
    ),
    "countdown_24_layers": ("countdown-tiny", ("training.steps=4", *_DEEP)),
    "alfworld": ("alfworld-tiny", ("training.steps=4", "warm_start.demonstrations=300", "warm_start.epochs=1")),
}
"""Recipe and overrides by name. ``countdown_slow``: an engine that is given few episodes at once, so that rollout takes
the most of a step, as it does with long answers."""


def measure(names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """By setting: seconds a step, and the shares of it."""
    told = {}
    for name in names:
        recipe, overrides = SETTINGS[name]
        settings = [*overrides, *_ALL]
        start = warm_started(recipe, settings, seed, label=f"{name}, warm start")
        arm = play_arm(recipe, settings, seed, start, label=name)
        told[name] = costs(arm) | bounds(load_recipe(recipe, settings))
    return told


def costs(arm: Arm) -> dict[str, float]:
    """Medians over the steps but the first, in which everything is slow. ``all_share``: had nothing been read ahead."""

    def share(*names: str) -> float:
        found = [sum(step[name] for name in names) / step["time/step_s"] for step in arm.steps[1:]]
        return round(statistics.median(found), 4)

    return {
        "step_s": round(statistics.median(step["time/step_s"] for step in arm.steps[1:]), 3),
        "critical_share": share("rhythm/time_s"),
        "all_share": share("rhythm/time_s", "rhythm/ahead_s"),
        "groups_ahead": round(statistics.median(step["rhythm/ahead_share"] for step in arm.steps[1:]), 3),
        "learner_share": share("time/learner_s"),
    }


def bounds(recipe: Recipe) -> dict[str, float]:
    """Reading against learning in passes over the same tokens: the layers below the last that is read, over those of a
    forward and a backward pass (which is two), ``learner.epochs`` times."""
    layers = recipe.model.layers
    read = max(chosen_layers(layers, recipe.rhythm.layers)) / layers
    return {"layers_run": round(read, 3), "of_learning_at_least": round(read / (3 * recipe.learner.epochs), 3)}


def show(told: dict[str, Any]) -> None:
    for name, one in told.items():
        print(
            f"{name:<20} step {one['step_s']:.2f} s: reading {one['all_share']:.1%} of it, {one['critical_share']:.1%} "
            f"while the learner could have learned; {one['groups_ahead']:.0%} of the groups ahead; learner "
            f"{one['learner_share']:.0%} of the step"
        )
