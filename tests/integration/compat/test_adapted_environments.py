"""Environments written for OpenEnv and for verifiers: their real packages in a bundle, played in a real sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.sdk import EnvSession, Rock
from tests.integration.sandboxes.conftest import platform

# Several hundred MiB of packages each.
pytestmark = [pytest.mark.bwrap, pytest.mark.slow, pytest.mark.timeout(1200)]
ENVS = Path(__file__).parents[2] / "fixtures" / "envs"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCK_ENV_PATH", str(ENVS))
        with platform("bubblewrap") as (address, home):
            for name in ("adapted-openenv", "adapted-verifiers"):
                build_environment(EnvCatalog(home), name, image=False)
            yield address


def played(url: str, env: str, task: str, *actions: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    """The first observation, and what each step answered."""

    async def play() -> tuple[Any, list[tuple[Any, ...]]]:
        async with Rock(url) as rock, rock.env(env, task=task, wait_s=300, reset_timeout_s=120) as session:
            return await answers(session)

    async def answers(session: EnvSession) -> tuple[Any, list[tuple[Any, ...]]]:
        first = (await session.reset())[0]
        return first, [tuple(await session.step(action)) for action in actions]

    return asyncio.run(play())


def test_an_environment_of_openenv_in_a_sandbox(url: str) -> None:
    first, steps = played(url, "adapted-openenv", "hello", "bye", {"txt": "hello"}, {"text": "hello"})
    assert first == "Say 'hello'."
    assert steps[0] == ("bye", 0.0, False, False, {})
    assert steps[1][1:] == (0.0, False, False, {"is_action_valid": False})
    assert steps[2] == ("hello", 1.0, True, False, {"success": True})


def test_a_taskset_of_verifiers_in_a_sandbox(url: str) -> None:
    assert played(url, "adapted-verifiers", "3", "7") == (
        "What is 3 + 3?",
        [("", 0.0, True, False, {"success": False})],
    )
    assert played(url, "adapted-verifiers", "3", "6")[1] == [("", 1.0, True, False, {"success": True})]
