"""Playing an environment to see whether it keeps its word: it answers, its episodes end, and the same task with the
same seed gives the same episode in another sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rock.sdk import Rock

# A step that acts on nothing is understood by most text environments.
FALLBACK_ACTION = "look"
# Keys under which environments list what may be done.
_ACTION_WORDS = ("admissible", "actions", "commands")


@dataclass(frozen=True, slots=True)
class Trace:
    """One episode, as far as it was played."""

    sandbox_id: str
    lease_s: float
    reset_s: float
    step_s: tuple[float, ...]
    actions: tuple[Any, ...]
    seen: tuple[str, ...] = field(repr=False)
    """Canonical JSON of every answer, the reset's first."""
    ended: bool

    @property
    def longest_step_s(self) -> float:
        return max(self.step_s, default=0.0)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def choose(info: dict[str, Any], given: Sequence[str], index: int) -> Any:
    """The action for step ``index``: from those given, else one that the environment offers, spread over its list."""
    if given:
        return given[index % len(given)]
    for key, value in sorted(info.items()):
        if isinstance(value, list) and value and any(word in key.lower() for word in _ACTION_WORDS):
            return value[(index * 7 + 3) % len(value)]
    return FALLBACK_ACTION


async def play(rock: Rock, name: str, task: str, seed: int, steps: int, given: Sequence[str]) -> Trace:
    """Play up to ``steps`` steps in a sandbox of its own. Raises whatever the SDK raises."""
    begin = time.monotonic()
    async with rock.env(name, task=task, seed=seed, labels={"by": "rock env check"}) as env:
        lease_s = time.monotonic() - begin
        begin = time.monotonic()
        observation, info = await env.reset()
        reset_s = time.monotonic() - begin
        actions: list[Any] = []
        step_s: list[float] = []
        seen, over = [canonical([observation, info])], False
        while not over and len(actions) < steps:
            actions.append(choose(info, given, len(actions)))
            begin = time.monotonic()
            step = await env.step(actions[-1])
            step_s.append(time.monotonic() - begin)
            info, over = step.info, step.terminated or step.truncated
            seen.append(canonical(list(step)))
        return Trace(env.sandbox_id, lease_s, reset_s, tuple(step_s), tuple(actions), tuple(seen), over)


def first_difference(one: Trace, other: Trace) -> str:
    """Where two traces part, in words; empty when they are equal."""
    for index, (a, b) in enumerate(zip(one.seen, other.seen, strict=False)):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            where = "reset" if index == 0 else f"step {index} ({one.actions[index - 1]!r})"
            return f"{where}: …{a[max(0, at - 20) : at + 60]}… against …{b[max(0, at - 20) : at + 60]}…"
    if len(one.seen) != len(other.seen):
        return f"{len(one.seen) - 1} steps against {len(other.seen) - 1}"
    return ""
