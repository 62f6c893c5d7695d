"""Instances made of a real package, played through the trainer's episodes in Docker and judged in other sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import swebench
from benchmarks._measuring import home, platform
from envs.swebench.judge.prepare import instances
from rock.runtimes.bundles import EnvCatalog
from rock.sdk import Rock

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]
COUNT = 6


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with home() as path:
        yield path


@pytest.fixture(scope="module")
def data(place: Path) -> Iterator[Path]:
    """Six instances of markupsafe, made by the command."""
    with tempfile.TemporaryDirectory() as name:
        yield swebench.make(place, Path(name), "markupsafe", COUNT)


@pytest.fixture(scope="module")
def catalog(place: Path, data: Path) -> EnvCatalog:
    swebench.build(place, data)
    return EnvCatalog(place)


@pytest.mark.usefixtures("catalog")
def test_solutions_are_resolved_and_neither_nothing_nor_tampering_is(place: Path, data: Path):
    rows = instances(data, quick=False)
    assert len(rows) == COUNT
    with platform(place, runtime="docker", capacity=10, pools={}) as url:
        arms = asyncio.run(swebench.measure(url, rows, 2))["arms"]
    assert {arm: (found["episodes"], found["resolved"], found["void"]) for arm, found in arms.items()} == {
        "gold": (COUNT, 1.0, {}),
        "empty": (COUNT, 0.0, {}),
        "tampering": (COUNT, 0.0, {}),
    }


def test_the_agents_sandbox_lacks_solution_and_hidden_tests(place: Path, data: Path, catalog: EnvCatalog):
    row = instances(data, quick=True)[0]
    assert json.loads((catalog.require_built("swebench").directory / "expert.json").read_text())[row.instance_id]
    line = next(line[1:] for line in row.patch.splitlines() if line.startswith("+") and not line.startswith("+++"))
    hidden = row.fail_to_pass[0].split("::")[0]

    async def look() -> tuple[str, str]:
        async with Rock(url) as rock, rock.env("swebench", task=row.instance_id) as env:
            await env.reset()
            found = await env.step(f"grep -rlF -e {json.dumps(line.strip())} /testbed /opt/rock/env/data; ls {hidden}")
            history = await env.step("git log --all --oneline | wc -l")
            return found.observation, history.observation

    with platform(place, runtime="docker", capacity=10, pools={}) as url:
        found, history = asyncio.run(look())
    assert "expert.json" not in found
    assert "No such file" in found
    assert history.startswith("1\n")


@pytest.mark.usefixtures("catalog")
def test_checking_instances_says_what_came_of_each(place: Path):
    argv = [sys.executable, "-m", "rock.cli", "env", "check", "swebench", "--instances", "2", "--repeat", "2", "--json"]
    environ = {**os.environ, "ROCK_HOME": str(place)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    assert [(one["verdict"], one["solved"], one["times"]) for one in played] == [("solved", 2, 2)] * 2


def test_a_run_accounts_for_every_episode_and_an_expert_in_the_models_place_wins_them_all(data: Path):
    argv = [sys.executable, "-m", "benchmarks.swebench", "--train", "--data", str(data)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    arms = json.loads(done.stdout)["arms"]
    for arm in arms.values():
        accounts = {state: count for state, count in arm["accounts"].items() if state != "void"}
        assert accounts == {"trained": 8, "evaluated": 4}
        assert arm["dispatched"] == sum(arm["accounts"].values())
        assert (arm["conserved"], arm["ledgers_agree"], arm["unaccounted"]) == (True, True, [])
        assert min(arm["tokens"], arm["sandbox_s"]) > 0
    assert arms["expert"]["success"] == {"train": 1.0, "eval": 1.0}
    assert arms["tiny"]["success"]["train"] < 1.0
