"""Runs with credit by attention rhythm: groups are read while the learner waits, and that changes nothing."""

from __future__ import annotations

import json

import pytest

from roll_core.learners.actor_attn import AttentionReader
from roll_core.training.replay import replay
from roll_core.training.run import RunDirectory


def metrics(directory: RunDirectory) -> list[dict[str, float]]:
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    return [values for line in lines if "time/step_s" in (values := json.loads(line)["values"])]


@pytest.mark.parametrize("alpha", [0, 1])
def test_what_is_read_ahead_trains_the_very_weights_of_a_replay_that_reads_whole_batches(
    run, make_recipe, run_directory, alpha
) -> None:
    run(
        make_recipe(
            algorithm={"credit": ["rhythm"]},
            rhythm={"horizon": [1, 20]},
            model={"layers": 3},
            rollout={"alpha": alpha, "group_size": 4, "groups_per_batch": 4, "concurrency": 4},
            training={"steps": 5},
            evaluation={"tasks": 0},
            checkpoint={"every_steps": 5},
        ),
        run_directory,
    )
    told = metrics(run_directory)
    assert max(values["rhythm/ahead_share"] for values in told) >= 0.25
    assert sum(values["rhythm/ahead_s"] for values in told) > 0
    steps = list(replay(run_directory))
    assert len(steps) == 6
    assert all(step.same for step in steps), steps
    assert len({step.weights for step in steps}) == 6


def test_a_reading_that_fails_is_the_runs_error(run, make_recipe, run_directory, monkeypatch) -> None:
    def broken(self, batch) -> None:
        raise FloatingPointError("the attention of this group cannot be read")

    monkeypatch.setattr(AttentionReader, "read_ahead", broken)
    with pytest.raises(FloatingPointError, match="cannot be read"):
        run(
            make_recipe(
                algorithm={"credit": ["rhythm"]},
                rollout={"alpha": 0, "group_size": 2, "groups_per_batch": 4, "concurrency": 2},
                training={"steps": 2},
                evaluation={"tasks": 0},
            ),
            run_directory,
        )
