"""The command line with real containers: none is left after `rock down`, whatever happened to the platform."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Rock = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.docker
COUNTER = Path(__file__).parents[2] / "fixtures" / "envs"


@pytest.fixture
def containers(rock_home: Path) -> Iterator[Callable[[], list[str]]]:
    """The names of all containers, running or not, that carry this home's label."""
    import docker

    client = docker.from_env()

    def names() -> list[str]:
        instance = (rock_home / "instance").read_text().strip()
        found = client.api.containers(all=True, filters={"label": f"rock.instance={instance}"})
        return sorted(name.lstrip("/") for one in found for name in one["Names"])

    yield names
    client.close()


def test_from_up_to_down_no_container_is_left(rock: Rock, containers: Callable[[], list[str]]) -> None:
    rock("image", "build")
    assert "runtime docker" in rock("up", "-d", "--port", "0", "--runtime", "docker").stdout
    one, two = (rock("sandbox", "create").stdout.strip() for _ in range(2))
    assert containers() == sorted([f"rock-{one}", f"rock-{two}"])
    assert rock("exec", one, "python3", "-c", "print(6 * 7)").stdout == "42\n"
    assert rock("exec", one, "sh", "-c", "touch /x", code=None).returncode != 0
    assert one in rock("ps").stdout
    loose = rock("sandbox", "create", "--writable", "rock-base:py" + _python()).stdout.strip()
    assert "writable root" in rock("ps").stdout
    rock("sandbox", "rm", one, loose)
    rock("down")
    assert containers() == []


def test_down_sweeps_what_a_killed_platform_left(
    rock: Rock, rock_home: Path, containers: Callable[[], list[str]]
) -> None:
    rock("image", "build")
    rock("up", "-d", "--port", "0", "--runtime", "docker")
    rock("sandbox", "create")
    server = json.loads((rock_home / "server.json").read_text())
    # Each of the two would start the other again: the platform must not look while its guardian ends.
    os.kill(server["pid"], signal.SIGSTOP)
    for pid in (server["guardian_pid"], server["pid"]):
        os.kill(pid, signal.SIGKILL)
    assert len(containers()) == 1
    leftovers = {row["name"]: row for row in json.loads(rock("doctor", "--json", code=None).stdout)}["leftovers"]
    assert leftovers["remedy"] == "rock doctor --fix"
    assert "1 sandbox" in rock("down").stdout
    assert containers() == []


def test_an_image_that_does_not_exist_is_named(rock: Rock) -> None:
    rock("up", "-d", "--port", "0", "--runtime", "docker")
    assert "no-such-image:1" in rock("sandbox", "create", "no-such-image:1", code=1).stderr


def test_check_builds_plays_twice_and_compares(rock: Rock, containers: Callable[[], list[str]]) -> None:
    env = {"ROCK_ENV_PATH": str(COUNTER)}
    rock("up", "-d", "--port", "0", "--runtime", "docker", env=env)
    rows = json.loads(rock("env", "check", "counter", "--json", "--steps", "3", env=env).stdout)
    assert {row["name"]: row["ok"] for row in rows} == {"lease": True, "reset": True, "step": True, "same again": True}
    rock("down")
    assert containers() == []


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
