"""Runs whose learner is shared out over processes: one is killed in the middle, and the run is the one without."""

from __future__ import annotations

import json

import psutil
import pytest

from roll_core.learners.fsdp import FsdpLearner
from roll_core.training.lines import read
from roll_core.training.replay import replay
from tests.integration.training.killing import LEARNER, SECTIONS, STEPS, kill_one, ranks_left


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(learner={"kind": "fsdp", **LEARNER}, algorithm={"filter_zero_variance": False}, **SECTIONS)


def test_a_process_of_the_learner_is_killed_and_nothing_differs(run, recipe, run_directory, monkeypatch) -> None:
    killed = kill_one(monkeypatch, FsdpLearner)
    assert run(recipe, run_directory).steps == STEPS
    assert not any(psutil.pid_exists(pid) for learner in killed for pid in learner.pids)

    lines = [json.loads(line)["values"] for _, line in read(run_directory.path / "metrics.jsonl")]
    assert [v["learner/restarts"] for v in lines if "learner/restarts" in v] == [0.0, 0.0, 0.0, 1.0]
    # The replay never lost its learner: the run's weights are those that its batches give, bit for bit.
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]
    assert ranks_left() == []
