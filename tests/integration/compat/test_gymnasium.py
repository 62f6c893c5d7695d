"""Gymnasium's own `make` on a platform with real sandboxes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("gymnasium")
import gymnasium

import rock.compat.gymnasium as registration
from rock.sdk import InvalidRequest

pytestmark = pytest.mark.bwrap


def test_every_installed_environment_is_registered() -> None:
    assert {"rock/alfworld-v0", "rock/countdown-v0"} <= set(gymnasium.registry)
    assert registration.register("alfworld") == "rock/alfworld-v0"


def test_an_episode_is_played_and_played_again_by_its_seed(on_bubblewrap: str, bubblewrap_home: str) -> None:
    build = [sys.executable, "-m", "rock.cli", "--home", bubblewrap_home, "env", "build", "countdown"]
    subprocess.run(build, check=True, env=os.environ | {"ROCK_URL": on_bubblewrap}, stdout=subprocess.DEVNULL)
    env = gymnasium.make("rock/countdown-v0", split="tiny_train", url=on_bubblewrap, render_mode="ansi")
    try:
        first, info = env.reset(seed=5)
        assert info["seed"] == 5
        assert env.render() == str(first)
        _, reward, terminated, truncated, _ = env.step("nonsense")
        assert isinstance(reward, float)
        assert terminated or truncated
        assert env.reset(seed=5)[0] == first
    finally:
        env.close()


def test_a_mode_it_cannot_render_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'human'"):
        gymnasium.make("rock/countdown-v0", render_mode="human")
