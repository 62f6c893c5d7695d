"""The programs that play episodes: a command of this machine, or a coroutine of this process.

Invariants: a command gets an empty directory of its own, an environment without the trainer's secrets, and no standard
input; whatever ends the wait for it ends it, with all that it started, also when the trainer is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from roll_core.errors import RecipeError

AGENTS_MARK = "{agents}"
AGENTS = Path(__file__).with_name("agents")
"""Programs that come with the trainer, see there."""

_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")
_TAIL_BYTES = 4096
_END_S = 3.0
"""For a program to end in order, once it is told to."""


@dataclass(frozen=True, slots=True)
class AgentTask:
    """One episode, for the program that plays it."""

    base_url: str
    """Of the policy, as OpenAI's clients take it: ends in ``/v1``."""
    api_key: str
    """Names the episode. Good until it is over."""
    model: str
    episode_id: str
    task: str
    seed: int
    observation: Any
    """What the environment's reset said."""
    info: Mapping[str, Any]
    step: Callable[[Any], Awaitable[dict[str, Any]]]
    """Acts in the environment. Returns observation, reward, terminated, truncated and info by these names,
    and whether the episode is ``over``."""

    def environ(self) -> dict[str, str]:
        """All of it for a program of another process, which asks ``ROCK_EPISODE_URL`` for the rest."""
        return {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_BASE": self.base_url,
            "OPENAI_API_KEY": self.api_key,
            "OPENAI_MODEL": self.model,
            "ROCK_EPISODE_URL": f"{self.base_url}/episode",
            "ROCK_EPISODE_ID": self.episode_id,
            "ROCK_TASK": self.task,
            "ROCK_SEED": str(self.seed),
        }


class Program(Protocol):
    async def play(self, task: AgentTask) -> str:
        """Plays the episode. Returns why it crashed, or nothing. Cancelling it ends it. Raises RecipeError when it
        cannot be started at all."""
        ...


class Coroutine:
    """A coroutine function ``async def play(task: AgentTask) -> None``."""

    def __init__(self, entry: str) -> None:
        """Raises RecipeError when there is no such function."""
        module, _, name = entry.partition(":")
        try:
            self._function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"agent.entry {entry!r} cannot be had: {error}.") from error

    async def play(self, task: AgentTask) -> str:
        try:
            await self._function(task)
        except Exception as error:  # noqa: BLE001 - somebody's program raises what it likes
            return f"{type(error).__name__}: {error}"
        return ""


class Command:
    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        """Raises RecipeError when there is no such program."""
        if shutil.which(argv[0], path=environ.get("PATH")) is None:
            raise RecipeError(f"agent.command: there is no program {argv[0]!r} to be executed.")
        self._argv = tuple(argument.replace(AGENTS_MARK, str(AGENTS)) for argument in argv)
        self._environ = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(environ)

    async def play(self, task: AgentTask) -> str:
        folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="rock-agent-")
        try:
            return await self._run(task, folder)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _run(self, task: AgentTask, folder: str) -> str:
        leash = Path(__file__).with_name("leash.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(leash), str(_END_S), *self._argv,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            cwd=folder, env=self._environ | task.environ(),
        )  # fmt: skip
        assert process.stdout is not None
        tail = bytearray()
        reading = asyncio.ensure_future(_keep_tail(process.stdout, tail))
        try:
            status = await process.wait()
        finally:
            await asyncio.shield(_end(process, reading))
        if status == 0:
            return ""
        return f"exit status {status}, last words: {tail.decode(errors='replace').strip() or 'none'}"


async def _keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    while chunk := await stream.read(1 << 16):
        tail += chunk
        del tail[:-_TAIL_BYTES]


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Future[None]) -> None:
    """What still runs is ended; what was written is read, unless somebody who got away holds the pipe."""
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * _END_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await asyncio.shield(reading)
    reading.cancel()
