"""Engine beside learner in a real run: they agree to the last digits; when one has another temperature it is told."""

from __future__ import annotations

import json

import pytest

from roll_core.learners.torch_learner import TorchLearner
from roll_core.training import assembly
from roll_core.training.replay import replay
from roll_core.training.reporting import FileReporter


def steps(run_directory) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_directory.path / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in lines if "mismatch/alarm" in line["values"]]


@pytest.fixture
def details(monkeypatch) -> list[str]:
    """What the run said of itself."""
    told: list[str] = []

    async def status(self, status, detail="", summary=None) -> None:
        told.append(detail)

    monkeypatch.setattr(FileReporter, "status", status)
    return told


def recipe_of(make_recipe, **algorithm):
    return make_recipe(training={"steps": 6}, evaluation={"tasks": 0}, rollout={"alpha": 0}, algorithm=algorithm)


def test_engine_and_learner_agree_about_fresh_tokens(run, make_recipe, run_directory, details) -> None:
    run(recipe_of(make_recipe), run_directory)
    found = steps(run_directory)
    assert len(found) == 6
    for values in found:
        assert values["mismatch/share_at_0"] == 1
        assert values["mismatch/gap_max_at_0"] < 1e-3
        assert values["mismatch/k3_at_0"] < 1e-8
        assert values["mismatch/ess"] > 0.999
        assert values["mismatch/alarm"] == 0
    assert not any("mismatch" in detail for detail in details)


def test_a_learner_that_does_not_know_the_temperature_is_told_of(
    run, make_recipe, run_directory, details, monkeypatch, caplog
) -> None:
    def ignorant(recipe, model):
        return TorchLearner(model, assembly.learner_config(recipe).model_copy(update={"temperature": 3.0}))

    monkeypatch.setattr(assembly, "make_learner", ignorant)
    run(recipe_of(make_recipe), run_directory)
    alarms = [values["mismatch/alarm"] for values in steps(run_directory)]
    assert alarms[:2] == [0, 0]
    assert alarms[2] >= 1
    assert any("disagree about tokens of the same weights" in detail for detail in details)
    assert any("compare temperature" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"advantage": "gigpo", "loss": "gspo", "gamma": 0.95, "correction": ["token_weight", "token_veto"]},
        {"advantage": "rloo", "loss": "cispo", "kl_coef": 0.05, "kl_in": "reward", "kl_estimator": "k1"},
        {"advantage": "reinforce_pp", "loss": "kimi", "normalise": "task", "correction": ["sequence_band"]},
    ],
    ids=lambda algorithm: algorithm["loss"],
)
def test_a_replay_comes_to_the_same_weights(run, make_recipe, run_directory, algorithm) -> None:
    run(recipe_of(make_recipe, **algorithm), run_directory)
    replayed = list(replay(run_directory))
    assert len(replayed) == 7
    assert all(step.same for step in replayed)
