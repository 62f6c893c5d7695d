"""Demonstrations: expert plans played in real environments, with every observation, kept on disk for the next run.

Invariants: a demonstration is kept only if the environment itself said success; the cache's key names everything it
depends on, so a hit is the same as playing again; the file appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rock.domain.errors import Fault, RockError
from roll_core.errors import RollError
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.scheduler import Slots, all_of, check_outage
from roll_core.rollout.sessions import SessionFactory

log = logging.getLogger(__name__)
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class DemoStep:
    """What was seen, and what was done then. ``admissible`` only if the recipe's prompt shows it. A slip of the
    demonstrator is not to be imitated."""

    observation: str
    action: str
    admissible: tuple[str, ...] = ()
    slip: bool = False


@dataclass(frozen=True, slots=True)
class Demonstration:
    task: str
    seed: int
    steps: tuple[DemoStep, ...]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    env: str
    env_options: dict[str, Any]
    method: str
    arguments: dict[str, Any]
    slips: float
    max_steps: int
    keep_admissible: bool
    open_s: float
    reset_s: float
    step_s: float
    plan_s: float
    outage_s: float


_adapter: TypeAdapter[tuple[Demonstration, ...]] = TypeAdapter(tuple[Demonstration, ...])


def cache_file(folder: Path, digest: str, tasks: Sequence[tuple[str, int]], settings: DemoSettings) -> Path:
    how = [settings.method, settings.arguments, settings.slips, settings.max_steps, settings.keep_admissible]
    key = [digest, list(tasks), settings.env_options, *how]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{settings.env}-{name}.json"


async def collect(
    sessions: SessionFactory,
    tasks: Sequence[tuple[str, int]],
    settings: DemoSettings,
    *,
    slots: Slots,
    guard: OutageGuard,
    cache: Path,
    on_progress: Callable[[int, int], None],
) -> tuple[Demonstration, ...]:
    """Demonstrations of ``tasks`` in their order; tasks that cannot be demonstrated are left out.

    Raises: RollError when none could be; PlatformOutage; RockError of the caller's fault.
    """
    file = cache_file(cache, await sessions.digest(), tasks, settings)
    if file.is_file():
        return _adapter.validate_json(file.read_bytes())
    done = 0

    async def one(task: str, seed: int) -> Demonstration | None:
        nonlocal done
        result = await _with_attempts(sessions, task, seed, settings, slots, guard)
        done += 1
        on_progress(done, len(tasks))
        return result

    found = tuple(d for d in await all_of([one(task, seed) for task, seed in tasks]) if d is not None)
    if not found:
        raise RollError(
            f"None of {len(tasks)} tasks of {settings.env} could be demonstrated with {settings.method!r}. See "
            "warm_start.method and warm_start.plan_s, and the log for the reasons."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(_adapter.dump_json(found))
    partial.rename(file)
    return found


async def _with_attempts(
    sessions: SessionFactory, task: str, seed: int, settings: DemoSettings, slots: Slots, guard: OutageGuard
) -> Demonstration | None:
    attempts = 0
    loop = asyncio.get_running_loop()
    while attempts < _ATTEMPTS:
        await slots.acquire()
        try:
            check_outage(guard, settings.outage_s)
            await asyncio.sleep(guard.wait_s(loop.time()))
            demonstration = await _play(sessions, task, seed, settings)
            guard.succeeded()
            return demonstration
        except (RockError, TimeoutError) as error:
            if isinstance(error, RockError) and error.fault is Fault.CALLER:
                raise
            log.info("demonstration of %s failed: %s", task, error)
            if isinstance(error, RockError) and error.fault is Fault.PLATFORM:
                guard.lost(loop.time())  # says nothing about the task: it costs no attempt
            else:
                attempts += 1
        finally:
            slots.release()
    return None


async def _play(sessions: SessionFactory, task: str, seed: int, settings: DemoSettings) -> Demonstration | None:
    total_s = settings.open_s + settings.reset_s + settings.plan_s + settings.max_steps * settings.step_s
    async with asyncio.timeout(total_s), sessions.open(task, seed) as session:
        observation, info = await session.reset(task, seed, settings.env_options or None)
        plan = await session.call(settings.method, timeout_s=settings.plan_s, **settings.arguments)
        plan = [str(action) for action in plan or ()]
        if not plan or len(plan) > settings.max_steps:
            return None
        rng = random.Random(f"{task}/{seed}/slips")
        steps: list[DemoStep] = []
        ahead = deque(plan)
        while ahead:
            spare = settings.max_steps - len(steps) - len(ahead)
            action = _slip(plan, info, settings.slips, rng) if spare > 0 else None
            slip = action is not None
            action = action or ahead.popleft()
            admissible = tuple(info.get("admissible_commands", ())) if settings.keep_admissible else ()
            steps.append(DemoStep(str(observation), action, admissible, slip))
            observation, _, terminated, truncated, info = await session.step(action)
            if terminated or truncated:
                return Demonstration(task, seed, tuple(steps)) if info.get("success") else None
    return None


def _slip(plan: Sequence[str], info: Mapping[str, Any], probability: float, rng: random.Random) -> str | None:
    """Now and then a command of the plan that does nothing at this point, so that the plan still holds after it."""
    if probability == 0 or rng.random() >= probability or "admissible_commands" not in info:
        return None
    admissible = set(info["admissible_commands"])
    idle = [action for action in plan if action not in admissible]
    return rng.choice(idle) if idle else None
