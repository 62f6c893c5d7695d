"""Ctrl-C while the learner imitates ends the process in order: Python must not end under torch, which would abort."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from roll_core.config import to_yaml

FOLDER = Path(__file__).parent
TASKS = '{"train": ["red", "green", "blue"], "test": ["red", "green", "blue"]}'
ENDLESS = {"demonstrations": 3, "epochs": 1_000_000, "batch_size": 3, "lr": 1e-3}
WIDE = {"hidden": 512, "intermediate": 2048, "layers": 4, "heads": 8, "head_dim": 64}
"""So that the thread is in torch nearly all the time."""


def test_ctrl_c_during_imitation_says_how_to_go_on(tmp_path, make_recipe) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "data").mkdir(parents=True)
    (bundle / "tasks.json").write_text(TASKS)
    platform = {"mode": "local", "local_entry": "scripted_doors:Doors", "local_bundle": str(bundle)}
    (tmp_path / "recipe.yaml").write_text(to_yaml(make_recipe(warm_start=ENDLESS, platform=platform, model=WIDE)))
    environ = {**os.environ, "PYTHONPATH": str(FOLDER), "ROCK_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-m", "rock.cli", "train", str(tmp_path / "recipe.yaml")]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, cwd=tmp_path
    ) as run:
        assert run.stdout is not None
        try:
            before = next(line for line in run.stdout if "imitation:" in line)
            run.send_signal(signal.SIGINT)
            after = run.stdout.read()
            code = run.wait(120)
        finally:
            run.kill()
    assert code == 130, before + after
    assert "start the run again" in after
    assert "terminate" not in after
