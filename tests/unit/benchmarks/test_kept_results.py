"""Comparisons that are stopped and gone on with: what was played is not played again, what is asked otherwise is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import algorithms, asyppo, rhythm
from benchmarks._rhythm_costs import SETTINGS, bounds, costs
from benchmarks._training import Arm, Kept
from roll_core.config import load_recipe
from roll_core.training.metrics import Rate


def test_what_a_file_holds_is_not_made_again_and_a_stopped_run_loses_nothing(tmp_path: Path) -> None:
    file, made = tmp_path / "results.jsonl", []

    def make() -> dict[str, int]:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"number": len(made)}

    kept = Kept(file)
    assert kept.get(("plain", 0), make) == {"number": 1}
    with pytest.raises(KeyboardInterrupt):
        kept.get(("plain", 1), make)
    again = Kept(file)
    assert again.get(("plain", 0), make) == {"number": 1}
    assert again.get(("plain", 1), make) == {"number": 3}
    assert len(file.read_text().splitlines()) == 2
    assert Kept(None).get(("plain", 0), make) == {"number": 4}


def test_an_arm_comes_back_from_a_file_with_the_metrics_that_were_kept() -> None:
    steps = ({"rhythm/time_s": 0.5, "time/step_s": 2.0, "learner/loss": 1.0}, {"time/step_s": 3.0})
    arm = Arm(Rate.of(20, 100), Rate.of(30, 100), steps, 5.0, ((10, 0.25),))
    back = Arm.of(json.loads(json.dumps(arm.as_dict("rhythm/time_s", "time/step_s"))))
    assert (back.success_before, back.success_after, back.between) == (
        arm.success_before,
        arm.success_after,
        arm.between,
    )
    assert back.total("time/step_s") == 5
    assert back.mean("rhythm/time_s") == 0.5
    assert "learner/loss" not in back.steps[0]


def test_an_arm_of_other_settings_is_another_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[object] = []

    def play(name, seed, budget):
        played.append((name, seed, budget))
        return Arm(Rate.of(1, 9), Rate.of(2, 9), (), 1.0).as_dict()

    monkeypatch.setattr(rhythm, "_play_one", play)
    for budget in (rhythm.SMALL, rhythm.SMALL, rhythm.FULL):
        rhythm.play(["plain", "coupled"], [0, 1], budget, tmp_path / "arms.jsonl")
    assert len(played) == 8


def test_small_comparisons_name_arms_that_exist_and_settings_that_recipes_take() -> None:
    assert set(asyppo.SMALL_ARMS) < asyppo.ARMS.keys()
    assert set(rhythm.SMALL_ARMS) < rhythm.ARMS.keys()
    assert set(algorithms.SMALL.losses) < set(algorithms.FULL.losses)
    assert load_recipe(asyppo.RECIPE, asyppo.SMALL_BUDGET).training.steps == 20
    assert load_recipe(rhythm.RECIPE, rhythm.SMALL).training.steps == 20


def test_costs_are_shares_of_the_step_without_its_first() -> None:
    step = {"time/step_s": 10.0, "rhythm/time_s": 0.5, "rhythm/ahead_s": 1.5, "rhythm/ahead_share": 0.75}
    steps = tuple(step | {"time/learner_s": 4.0, "time/step_s": length} for length in (99.0, 10.0, 10.0))
    found = costs(Arm(Rate.of(1, 9), Rate.of(2, 9), steps, 1.0))
    assert found == {
        "step_s": 10, "critical_share": 0.05, "all_share": 0.2, "groups_ahead": 0.75, "learner_share": 0.4
    }  # fmt: skip


def test_what_reading_takes_of_learning_is_counted_in_layers() -> None:
    recipe, overrides = SETTINGS["countdown_24_layers"]
    assert bounds(load_recipe(recipe, overrides)) == {"layers_run": 0.667, "of_learning_at_least": 0.222}
    assert bounds(load_recipe("countdown-tiny"))["layers_run"] == 0.5
