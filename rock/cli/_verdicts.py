"""`rock env check --instances`: the known solution of every task, played, and what came of it.

A bundle says how its tasks are solved in ``expert.json``, ``{task: [action, …]}``, which is no part of its image.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rock.cli._client import ask_at
from rock.domain.errors import InvalidRequest, NotFound, RockError

if TYPE_CHECKING:
    from rock.sdk import Rock

EXPERT = "expert.json"
Verdict = Literal["solved", "not solved", "flaky", "broken"]


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a task's known solution, over all times it was played."""

    task: str
    verdict: Verdict
    solved: int
    times: int
    seconds: float
    """Of the slowest."""
    found: str

    @property
    def ok(self) -> bool:
        return self.verdict == "solved"

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def chosen_tasks(known: Sequence[str], asked: str) -> list[str]:
    """``all``, a number (the first so many), or names with commas between. Raises NotFound, InvalidRequest."""
    if asked == "all":
        return list(known)
    if asked.isdigit():
        if int(asked) < 1:
            raise InvalidRequest(f"--instances {asked}: expected at least 1, 'all', or names of tasks.")
        return list(known[: int(asked)])
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if missing := [name for name in names if name not in known]:
        raise NotFound(
            f"no solution is known of {', '.join(missing)}", hint=f"There are {len(known)}, such as {known[0]}."
        )
    return names


def expert_of(directory: Path, name: str) -> dict[str, list[Any]]:
    """The known solutions in a bundle. Raises InvalidRequest when it has none."""
    path = directory / EXPERT
    try:
        found: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"environment {name!r} has no {EXPERT} in its bundle, so no solutions are known",
            hint="Let its `prepare` write one, {task: [action, …]}, or check one task without --instances.",
            cause=str(error),
        ) from error
    return found


def verdict_of(successes: Sequence[bool], failures: Sequence[str]) -> Verdict:
    if failures:
        return "broken"
    if all(successes):
        return "solved"
    return "flaky" if any(successes) else "not solved"


def check_instances(
    name: str, asked: str, jobs: int, repeat: int, step_s: float, on_played: Callable[[Played], None]
) -> list[Played]:
    """Play them, ``jobs`` at a time, ``repeat`` times each. Raises NotFound, ImageNotFound, InvalidRequest."""
    from rock.runtimes.bundles import EnvCatalog
    from rock.sdk import ensure_platform
    from rock.sdk.home import rock_home

    expert = expert_of(EnvCatalog(rock_home()).require_built(name).directory, name)
    tasks = chosen_tasks(list(expert), asked)
    url, started = ensure_platform()
    try:
        return ask_at(url, lambda rock: _all(rock, name, tasks, expert, jobs, repeat, step_s, on_played))
    finally:
        if started:
            ask_at(url, lambda rock: rock.shutdown())


async def _all(
    rock: Rock,
    name: str,
    tasks: Sequence[str],
    expert: dict[str, list[Any]],
    jobs: int,
    repeat: int,
    step_s: float,
    on_played: Callable[[Played], None],
) -> list[Played]:
    places = asyncio.Semaphore(jobs)

    async def one(task: str) -> Played:
        successes: list[bool] = []
        failures: list[str] = []
        words, longest_s = "", 0.0
        for _ in range(repeat):
            async with places:
                began = time.monotonic()
                try:
                    success, words = await _play(rock, name, task, expert[task], step_s)
                    successes.append(success)
                except RockError as error:
                    failures.append(words := f"{type(error).__name__} ({error.fault}): {error} {error.cause[-300:]}")
                longest_s = max(longest_s, time.monotonic() - began)
        verdict = verdict_of(successes, failures)
        played = Played(task, verdict, sum(successes), repeat, longest_s, words)
        on_played(played)
        return played

    return list(await asyncio.gather(*map(one, tasks)))


async def _play(rock: Rock, name: str, task: str, actions: Sequence[Any], step_s: float) -> tuple[bool, str]:
    """(success, the last words) of the known solution in a sandbox of its own. Raises whatever the SDK raises."""
    async with rock.env(
        name, task=task, wait_s=300, step_timeout_s=step_s, labels={"by": "rock env check --instances"}
    ) as env:
        await env.reset()
        words = "it did not end the episode"
        for action in actions:
            step = await env.step(action)
            if step.terminated or step.truncated:
                judged = step.info.get("verdict")
                words = str(judged["observation"] if judged else step.observation)
                return bool(step.info.get("success")), words
        return False, words
