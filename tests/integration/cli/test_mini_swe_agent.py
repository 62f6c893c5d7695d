"""mini-swe-agent, as it is published: our sandboxes are its shell, the policy under training is its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rock.sdk.home import read_server

ENVS = Path(__file__).parents[2] / "fixtures" / "envs"
VERSION = "2.4.6"
pytestmark = [pytest.mark.bwrap, pytest.mark.slow, pytest.mark.timeout(1500)]

CONFIG = {
    "agent": {"system_template": "a shell", "instance_template": "{{task}}", "step_limit": 4},
    "model": {
        "model_class": "litellm_textbased",
        "action_regex": "run: (.*)",
        "observation_template": "{{output.output}}",
        "format_error_template": "say run: and a command",
    },
}


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has mini-swe-agent. Its requirements are others than ours, so it lives by itself; one that is there
    already is named by ``MINI_SWE_AGENT_PYTHON``."""
    if given := os.environ.get("MINI_SWE_AGENT_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("mini")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin" / "pip"), "install", "-q", f"mini-swe-agent=={VERSION}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mini-swe-agent cannot be installed here: {done.stderr.strip()[-300:]}")
    return str(folder / "bin" / "python")


def recipe(mini: str, config: Path) -> dict[str, object]:
    return {
        "name": "mini",
        "env": {"name": "workshop"},
        "model": {
            "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32, "intermediate": 128,
            "max_context": 400,
        },
        "tokenizer": {"vocab_size": 300},
        "engine": {"slots": 4},
        "learner": {"lr": 1e-3},
        "algorithm": {"filter_zero_variance": False},
        "rollout": {
            "source": "agent", "concurrency": 2, "group_size": 2, "groups_per_batch": 1, "alpha": 0, "max_turns": 4,
            "max_tokens_per_turn": 60,
        },
        "agent": {"command": [mini, "{agents}/mini_swe_agent.py", str(config)], "finish": "submit", "grace_s": 60.0},
        "warm_start": {"demonstrations": 1, "epochs": 150, "batch_size": 1, "lr": 1e-2},
        "evaluation": {"tasks": 0},
        "training": {"steps": 1, "threads": 1},
        "checkpoint": {"every_steps": 1},
    }  # fmt: skip


def test_its_episodes_train_the_policy(
    rock: Callable[..., subprocess.CompletedProcess[str]], rock_home: Path, mini: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("ROCK_ENV_PATH", str(ENVS))
    rock("env", "build", "workshop", "--runtime", "bubblewrap")
    rock("up", "-d", "--port", "0", "--runtime", "bubblewrap")
    server = read_server(rock_home)
    assert server is not None
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(mini, tmp_path / "mini.yaml")))
    done = subprocess.run(
        [sys.executable, "-m", "rock.cli", "train", str(tmp_path / "recipe.yaml"), "--url", server.url],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (rock_home / "runs").glob("mini-*")
    episodes = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    trained = [e for e in episodes if e["ledger"] == "trained"]
    assert len(trained) == 2
    assert all(e["outcome"] == "completed" and e["generated_tokens"] > 0 for e in trained)
    assert all("write 7" in e["turns"][0]["observation"] for e in trained)
    assert any(e["success"] for e in trained), "after imitation it writes the number, in a sandbox, by mini-swe-agent"
    (step,) = [m for m in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if m["step"] == 1]
    assert step
