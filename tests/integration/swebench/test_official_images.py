"""Instances that are played in images of their own, under SWE-bench's names: both formats of rows, in real Docker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import swebench
from benchmarks._measuring import home, platform
from envs.swebench.judge.prepare import instances
from rock.domain.errors import ImageBuildFailed, InvalidRequest, TaskQuarantined
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.images import docker_client, has_image
from rock.sdk import Rock
from tests.integration.swebench import official

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

_RUN = secrets.token_hex(3)
NEW, OLD, LOST = f"acme__calc-{_RUN}1", f"pallets__flask-{_RUN}2", f"acme__nowhere-{_RUN}3"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with home() as path:
        yield path


@pytest.fixture(scope="module")
def data(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One instance in each format, with images that differ, and one whose image is nowhere."""
    folder = tmp_path_factory.mktemp("official")
    rows = [
        official.row(NEW, "+", older=False),
        official.row(OLD, "*", older=True),
        {**official.row(LOST, "+", older=False), "image": f"localhost:1/nowhere:{_RUN}"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        official.build(NEW, "+", folder / "new")
        official.build(OLD, "*", folder / "old")
        swebench.build(place, folder)
        yield folder
    finally:
        official.remove([NEW, OLD])


@pytest.fixture(scope="module")
def url(place: Path, data: Path) -> Iterator[str]:
    with platform(place, runtime="docker", capacity=10, pools={}) as address:
        yield address


def test_solutions_are_resolved_and_neither_nothing_nor_tampering_is(url: str, data: Path):
    rows = [row for row in instances(data, quick=False) if row.instance_id != LOST]
    arms = asyncio.run(swebench.measure(url, rows, 2))["arms"]
    assert {arm: (found["episodes"], found["resolved"], found["void"]) for arm, found in arms.items()} == {
        "gold": (2, 1.0, {}),
        "empty": (2, 0.0, {}),
        "tampering": (2, 0.0, {}),
    }


def test_each_task_has_its_image_its_conda_environment_and_neither_hidden_tests_nor_the_solution(url: str):
    async def look(task: str) -> tuple[str, str, str, str, str]:
        async with Rock(url) as rock, rock.env("swebench", task=task, wait_s=300) as env:
            await env.reset()
            with pytest.raises(InvalidRequest, match="image of task"):
                await env.reset(task=NEW if task == OLD else OLD)
            await env.reset()
            answers = [
                (await env.step(command)).observation
                for command in (
                    "echo $CONDA_DEFAULT_ENV; command -v pytest",
                    "pytest",
                    "git log --all --oneline | wc -l; git tag; git status --short",
                    f"grep -rl 'def test_twice' /testbed /opt /tmp /var/tmp; ls /opt/rock/env/data/instances {task}",
                )
            ]
            return env.lease.image, *answers

    for task in (NEW, OLD):
        image, conda, tests, history, found = asyncio.run(look(task))
        assert task in image
        assert conda.startswith("testbed\n/opt/miniconda3/envs/testbed/bin/pytest\n")
        assert tests == "PASSED tests/test_calc.py::test_least\nexit code 0"
        assert history.split("\n")[:2] == ["1", "?? left-over.txt"]
        assert f"{task}.json" in found
        assert "test_calc" not in found


def test_what_was_there_at_the_start_is_no_part_of_the_submission(url: str):
    async def submit() -> tuple[str, float]:
        async with Rock(url) as rock, rock.env("swebench", task=NEW, wait_s=300, step_timeout_s=300) as env:
            await env.reset()
            await env.step("sed -i 's/a - a/a * 2/' calc.py")
            ended = await env.step("submit")
            return ended.info["submission"], ended.reward

    submission, reward = asyncio.run(submit())
    assert "calc.py" in submission
    assert "left-over" not in submission
    assert reward == 1.0


def test_an_image_that_is_nowhere_fails_its_task_alone_says_what_to_do_and_is_left_out_in_the_end(url: str):
    async def ask(task: str) -> str:
        async with Rock(url) as rock, rock.env("swebench", task=task, wait_s=120) as env:
            return env.sandbox_id

    async def ask_again_and_again(task: str) -> None:
        for _ in range(8):
            with contextlib.suppress(ImageBuildFailed):
                await ask(task)

    with pytest.raises(ImageBuildFailed) as caught:
        asyncio.run(ask(LOST))
    assert all(word in str(caught.value) for word in (LOST, f"localhost:1/nowhere:{_RUN}", "docker load"))
    with pytest.raises(TaskQuarantined, match=LOST):
        asyncio.run(ask_again_and_again(LOST))
    assert asyncio.run(ask(NEW))


def test_a_lost_sandbox_goes_on_from_its_snapshot_in_the_tasks_own_image(url: str):
    from docker.api import APIClient

    async def play() -> tuple[int, bool, str]:
        async with Rock(url) as rock, rock.env("swebench", task=NEW, wait_s=300, step_timeout_s=300) as env:
            await env.reset()
            await env.step("echo kept > note.txt")
            for _ in range(5):  # a snapshot is taken after the fifth, while we think
                await env.step("true")
            await env.step("sed -i 's/a - a/a + a/' calc.py")
            api = APIClient(version="auto")
            found = api.containers(filters={"label": f"rock.sandbox={env.sandbox_id}"})
            api.kill(found[0]["Id"])
            api.close()
            answer = (await env.step("cat note.txt")).observation
            ended = await env.step("submit")
            return len(env.recoveries), ended.reward == 1.0, answer

    assert asyncio.run(play()) == (1, True, "kept\nexit code 0")


def test_tasks_that_are_said_to_come_have_their_images_and_their_judges_before_anybody_asks(place: Path, url: str):
    catalog = EnvCatalog(place)
    specs = [catalog.task_spec(env, NEW) for env in ("swebench", "swebench-judge")]
    images = [spec.image for spec in specs if spec is not None]
    assert len(images) == 2

    async def prefetch() -> int:
        async with Rock(url) as rock:
            return await rock.prefetch("swebench", [LOST, NEW])

    with docker_client(60.0) as api:
        for image in images:
            if has_image(api, image):
                api.remove_image(image, force=True)
        assert asyncio.run(prefetch()) == 4, "two tasks, in the agent's image and in the judge's"
        deadline = time.monotonic() + 300
        while missing := [image for image in images if not has_image(api, image)]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.2)


def test_check_and_prefetch_know_the_images_of_tasks(place: Path, url: str):
    environ = {**os.environ, "ROCK_HOME": str(place)}
    rock = [sys.executable, "-m", "rock.cli", "env"]
    fetched = subprocess.run(
        [*rock, "prefetch", "swebench", "--instances", f"{NEW},{OLD},{LOST}"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fetched.returncode == 1
    assert "1 failed" in fetched.stdout
    assert LOST in fetched.stdout
    checked = subprocess.run(
        [*rock, "check", "swebench", "--instances", f"{NEW},{OLD}", "--repeat", "2", "--json"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert [(one["verdict"], one["solved"]) for one in json.loads(checked.stdout)] == [("solved", 2)] * 2
