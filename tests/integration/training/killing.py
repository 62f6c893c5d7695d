"""Runs whose learner is shared out over processes, of which one is killed in the middle."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from roll_core.learners.shared import SharedLearner

STEPS = 4
SECTIONS: dict[str, dict[str, object]] = {
    "rollout": {"alpha": 0, "group_size": 4, "groups_per_batch": 2, "concurrency": 8},
    "warm_start": {"epochs": 4},
    "training": {"steps": STEPS, "threads": 1},
    "checkpoint": {"every_steps": 2},
    "evaluation": {"tasks": 0},
}
LEARNER: dict[str, object] = {"processes": 2, "lr": 0.001, "updates_per_batch": 2}


def kill_one(monkeypatch: pytest.MonkeyPatch, kind: type[SharedLearner]) -> list[SharedLearner]:
    """One process of the first learner is killed a step after its last checkpoint. Returns whom it happened to."""
    hit: list[SharedLearner] = []
    original = kind.train_step

    def faulty(learner: Any, batch: Any, *, progress: float = 0.0) -> dict[str, float]:
        if not hit and learner.version == 3:
            hit.append(learner)
            os.kill(learner.pids[1], signal.SIGKILL)
        return original(learner, batch, progress=progress)

    monkeypatch.setattr(kind, "train_step", faulty)
    return hit


def ranks_left() -> list[psutil.Process]:
    """Processes of learners that still run."""
    return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in _words_of(p)]


def _words_of(process: psutil.Process) -> str:
    """Its command line; nothing where it has ended, as what other tests left to be reaped has."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
