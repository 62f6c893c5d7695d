"""Runs whose learner is shared out over processes: one is killed in the middle, and the run is the one without."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from roll_core.learners.fsdp import FsdpLearner
from roll_core.training.lines import read
from roll_core.training.replay import replay

STEPS = 4


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(
        learner={"kind": "fsdp", "processes": 2, "lr": 0.001, "updates_per_batch": 2},
        rollout={"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
        algorithm={"filter_zero_variance": False},
        warm_start={"epochs": 4},
        training={"steps": STEPS, "threads": 1},
        checkpoint={"every_steps": 2},
        evaluation={"tasks": 0},
    )


def words_of(process: psutil.Process) -> str:
    """Its command line; nothing where it has ended, as what other tests left to be reaped has."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_process_of_the_learner_is_killed_and_nothing_differs(run, recipe, run_directory, monkeypatch) -> None:
    learners: list[FsdpLearner] = []
    original = FsdpLearner.train_step

    def faulty(learner: FsdpLearner, batch, *, progress=0.0):
        if not learners and learner.version == 3:  # a step after the last checkpoint
            learners.append(learner)
            os.kill(learner.pids[1], signal.SIGKILL)
        return original(learner, batch, progress=progress)

    monkeypatch.setattr(FsdpLearner, "train_step", faulty)
    assert run(recipe, run_directory).steps == STEPS
    assert not any(psutil.pid_exists(pid) for learner in learners for pid in learner.pids)

    lines = [json.loads(line)["values"] for _, line in read(run_directory.path / "metrics.jsonl")]
    assert [v["learner/restarts"] for v in lines if "learner/restarts" in v] == [0.0, 0.0, 0.0, 1.0]
    # The replay never lost its learner: the run's weights are those that its batches give, bit for bit.
    assert [(one.step, one.same) for one in replay(run_directory)] == [(n, True) for n in range(STEPS + 1)]
    children = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in words_of(p)]
    assert children == []
