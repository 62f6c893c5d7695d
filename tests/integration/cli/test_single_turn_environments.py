"""The single-turn environments as people get them: built into a bundle, played in sandboxes that see nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rock.sdk import Rock
from rock.sdk.home import read_server

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.bwrap


def url_of(home: Path) -> str:
    server = read_server(home)
    assert server is not None
    return server.url


async def one_turn(url: str, env: str, split: str, response: str | None) -> tuple[str, float, dict[str, object]]:
    """The first task of ``split``, answered with ``response``, or as the environment's own demonstration does."""
    async with Rock(url) as rock:
        task = (await rock.tasks(env, split)).tasks[0]
        async with rock.env(env, task=task, seed=0) as session:
            question, _ = await session.reset()
            answer = response if response is not None else (await session.call("expert_plan"))[0]
            _, reward, terminated, truncated, info = await session.step(answer)
            assert terminated
            assert not truncated
            return str(question), reward, info


@pytest.mark.parametrize(("env", "split"), [("countdown", "tiny_heldout"), ("arithmetic", "heldout")])
def test_a_demonstration_wins_and_silence_does_not(rock: Command, rock_home: Path, env: str, split: str) -> None:
    rock("env", "build", env, "--quick", "--runtime", "bubblewrap")
    rock("up", "-d", "--port", "0", "--runtime", "bubblewrap")
    _, reward, info = asyncio.run(one_turn(url_of(rock_home), env, split, None))
    assert (reward, info["success"]) == (1.0, True)
    _, reward, info = asyncio.run(one_turn(url_of(rock_home), env, split, ""))
    assert (reward, info["success"], info["is_action_valid"]) == (0.0, False, False)
    rows = json.loads(rock("env", "check", env, "--json", "--action", "answer: 1").stdout)
    assert [(row["name"], row["ok"]) for row in rows if not row["ok"]] == []


def test_the_checker_of_mathematics_works_inside_the_sandbox(rock: Command, rock_home: Path) -> None:
    rock("env", "build", "math", "--quick", "--runtime", "bubblewrap")
    rock("up", "-d", "--port", "0", "--runtime", "bubblewrap")
    response = r"17 times 24 is 408, and 11 more make \boxed{419.0}."
    question, reward, info = asyncio.run(one_turn(url_of(rock_home), "math", "train", response))
    assert question.startswith("A baker packs 17 boxes with 24 rolls each")
    assert (reward, info) == (1.0, {"success": True, "is_action_valid": True, "answer": "419.0"})
    _, reward, info = asyncio.run(one_turn(url_of(rock_home), "math", "train", r"\boxed{9^{9^{9^{9}}}}"))
    assert (reward, info["success"]) == (0.0, False)
