"""What the benchmarks of Docker sandboxes share: the platform, a command to measure, and when nothing else goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from docker.api import APIClient

from benchmarks._measuring import home, platform
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.docker_daemon import check_docker
from rock.runtimes.images import ensure_base_image
from rock.sdk import Rock

COMMAND, CODE = "(exit 7)", 7
"""What is run everywhere, and how it ends."""


def docker_is_here() -> bool:
    """If not, says what to do."""
    if not (found := check_docker()).ok:
        print(f"This needs Docker: {found.detail}. {found.remedy}")
    return found.ok


@contextlib.contextmanager
def on_docker(capacity: int, pools: Mapping[str, int] | None = None) -> Iterator[str]:
    """The address of a platform of our own, with the base image; the environments of ``pools`` are built."""
    with home() as directory:
        ensure_base_image()
        for env in pools or {}:
            build_environment(EnvCatalog(directory), env)
        with platform(directory, runtime="docker", capacity=capacity, pools=pools or {}) as url:
            yield url


async def nothing_starts(rock: Rock) -> None:
    """The pool fills up again behind every claim, which is not what is measured next."""

    async def quiet() -> bool:
        busy = {"requested", "starting", "released", "failed"}
        return not any(count for n in await rock.nodes() for state, count in n.sandboxes.items() if state in busy)

    await until(quiet, "sandboxes are still being started or removed")


async def until(condition: Callable[[], Awaitable[bool]], otherwise: str, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {within_s:g} s")
        await asyncio.sleep(0.05)


async def took(work: Awaitable[Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def checked(work: Awaitable[Any]) -> None:
    """``work`` runs :data:`COMMAND`. Raises AssertionError when it ended otherwise than it must."""
    code = (await work).exit_code
    if code != CODE:
        raise AssertionError(f"{COMMAND} ended with {code}, expected {CODE}")


def docker_exec(api: APIClient, container: str) -> float:
    """Seconds that :data:`COMMAND` takes through the engine's API."""
    began = time.perf_counter()
    exec_id = api.exec_create(container, ["sh", "-c", COMMAND])["Id"]
    api.exec_start(exec_id)
    code = api.exec_inspect(exec_id)["ExitCode"]
    seconds = time.perf_counter() - began
    if code != CODE:
        raise AssertionError(f"docker exec ended with {code}, expected {CODE}")
    return seconds
