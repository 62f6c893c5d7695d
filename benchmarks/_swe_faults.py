"""Episodes of swebench whose sandboxes are killed, paused and frozen: what is lost, and what it costs to go on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from docker.api import APIClient

from benchmarks._faults import Faults
from benchmarks._measuring import percentile
from envs.swebench.prepare import expert_actions
from rock.domain.sandbox import SandboxState
from rock.sdk import Rock
from roll_core.types import Trajectory

STRIKES = ("kill_container", "pause", "sigstop", "kill_env")
_EVERY_S = 2.0
# A lease that loses more than three sandboxes within a minute is given up: the fault is taken for its own.
_PER_LEASE = 2
RECOVER_AT_STEP = 15


def long_plans(
    plans: Mapping[str, tuple[str, list[str]]], episodes: int, steps: int
) -> dict[str, tuple[str, list[str]]]:
    """``episodes`` of them, those of each arm in turn, with ``steps`` steps of ordinary work before what they do."""
    arms: dict[str, list[str]] = {}
    for name in plans:
        arms.setdefault(name.partition("/")[0], []).append(name)
    names = [cycle(of_arm) for of_arm in arms.values()]
    out: dict[str, tuple[str, list[str]]] = {}
    for number, arm in zip(range(episodes), cycle(names), strict=False):
        name = next(arm)
        task, actions = plans[name]
        work = [f"echo {step} >> /var/tmp/notes.txt; sleep 0.3; tail -n 1 /var/tmp/notes.txt" for step in range(steps)]
        out[f"{name}#{number}"] = (task, [*work, *actions])
    return out


class Striker:
    """One fault after the other, each on a sandbox that somebody holds; no lease is hit more than twice."""

    def __init__(self, rock: Rock, home: Path, seed: int = 0) -> None:
        self._rock = rock
        self._api = APIClient(version="auto")
        self._faults = Faults(self._api, home)
        self._chance = random.Random(seed)
        self._hits: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            for fault in cycle(STRIKES):
                await asyncio.sleep(_EVERY_S)
                held = await self._rock.sandboxes(state=SandboxState.LEASED)
                free = sorted((one.lease_id, one.id) for one in held if self._hits[one.lease_id] < _PER_LEASE)
                if not free:
                    continue
                lease_id, sandbox_id = self._chance.choice(free)
                with contextlib.suppress(LookupError):  # it ended meanwhile, or has no such process yet
                    await asyncio.to_thread(self._strike, fault, sandbox_id)
                    self._hits[lease_id] += 1
                    self.done[fault] += 1
        finally:
            self._api.close()

    def _strike(self, fault: str, sandbox_id: str) -> None:
        try:
            self._faults.on_sandbox(fault, sandbox_id)
        except Exception as error:
            raise LookupError(sandbox_id) from error


def verdicts(played: Mapping[str, Trajectory], expected: Mapping[str, float]) -> dict[str, Any]:
    """Of each that ended void, and of each that counts and was scored wrongly, its outcome; and how many sandboxes were
    replaced under the others."""
    void = {e: str(t.outcome) for e, t in played.items() if type(t.outcome).__name__ == "Void"}
    wrong = {
        episode: str(t.outcome)
        for episode, t in played.items()
        if episode not in void and bool(getattr(t.outcome, "success", False)) != bool(expected[episode.split("/")[0]])
    }
    return {"void": void, "mis_scored": wrong, "recovered": sum(t.recoveries for t in played.values())}


async def recoveries(url: str, rows: Sequence[Any], home: Path, count: int) -> dict[str, Any]:
    """Episodes whose container is killed after step 15, one at a time: seconds until the next step is answered."""
    api = APIClient(version="auto")
    took: list[float] = []
    parts: list[dict[str, Any]] = []
    resolved = 0
    try:
        async with Rock(url) as rock:
            for row in (row for _, row in zip(range(count), cycle(rows), strict=False)):
                async with rock.env("swebench", task=row.instance_id, wait_s=300, step_timeout_s=600) as env:
                    await env.reset()
                    for step in range(RECOVER_AT_STEP):
                        await env.step(f"echo {step} >> /var/tmp/notes.txt; git status --short")
                    await asyncio.to_thread(Faults(api, home).on_sandbox, "kill_container", env.sandbox_id)
                    began = time.monotonic()
                    answer = await env.step("wc -l < /var/tmp/notes.txt")
                    took.append(time.monotonic() - began)
                    if not str(answer.observation).startswith(str(RECOVER_AT_STEP)):
                        raise SystemExit(f"{row.instance_id}: after the recovery the notes are {answer.observation!r}")
                    parts += [report.model_dump(include=_PARTS) for report in env.recoveries]
                    fix, submit = expert_actions(row)
                    await env.step(fix)
                    resolved += (await env.step(submit)).reward == 1.0
    finally:
        api.close()
    return {
        "episodes": count,
        "killed_after_step": RECOVER_AT_STEP,
        "resolved": resolved,
        "recovery_s": {"p50": round(percentile(took, 0.5), 3), "max": round(max(took), 3)},
        "of_each": parts,
    }


_PARTS = {"rebind_s", "replay_s", "steps", "from_step", "verdict"}
