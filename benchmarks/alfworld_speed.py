"""``python -m benchmarks.alfworld_speed [--quick]``: our ALFWorld engine against the one shipped, in the same run.

Both play the same commands of the same games, in this process; CPU time of stepping is counted, not of loading. The
shipped engine is started as ``AlfredTWEnv`` starts it, with nothing memoised. The last line is one JSON object:
``steps_per_s`` and ``as_shipped_steps_per_s`` (per CPU second, with games never played before), ``ratio``,
``traces_equal`` (texts, admissible commands in order, won), ``games``, ``steps``; ``reset_ms`` is the slowest second
reset of a game through the environment, ``first_reset_ms`` and ``as_shipped_reset_ms`` are medians;
``warm_steps_per_s`` is what training sees: episodes of games played before, through the environment. All in CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from envs.alfworld.engine import Game
from envs.alfworld.env import AlfworldEnv
from envs.alfworld.prepare import prepare
from envs.alfworld.shipped import ShippedPlay, missing
from envs.alfworld.store import Store, write_official
from envs.alfworld.traces import Comparison, compare

_FULL = {"games": 60, "steps": 30}
_QUICK = {"games": 12, "steps": 15}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.alfworld_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK['games']} games instead of {_FULL['games']}")
    args = parser.parse_args(argv)
    if reason := missing():
        print(f"The shipped engine cannot run here ({reason}); install envs/alfworld/requirements*.txt with --no-deps.")
        return 1
    with tempfile.TemporaryDirectory(prefix="alfworld-speed-") as folder:
        print(json.dumps(measure(Path(folder), **(_QUICK if args.quick else _FULL))))
    return 0


def measure(folder: Path, games: int, steps: int) -> dict[str, Any]:
    """Generate games of all types, compare both engines on them, and time the environment alone."""
    tasks = prepare(folder, {"train": games // 2, "heldout_seen": 0, "heldout_unseen": games - games // 2})
    store = Store(folder / "data", None)
    compared: list[Comparison] = []
    shipped_reset_s = []
    for task in [*tasks["train"], *tasks["heldout_unseen"]]:
        spec, texts = store.spec(task), store.texts(task)
        write_official(folder / "official" / task, spec, store.world)
        start = time.process_time()
        oracle = ShippedPlay(folder / "official" / task / "game.tw-pddl")
        shipped_reset_s.append(time.process_time() - start)
        episode = Game(texts.domain, texts.grammar, texts.problem).start()
        compared.append(compare(episode, oracle, texts.plan, steps, f"speed/{task}"))
        print(f"{task} {texts.task_type}: {compared[-1].difference or 'identical'}", flush=True)
    fast = sum(c.steps for c in compared) / sum(c.cpu_s for c in compared)
    shipped = sum(c.steps for c in compared) / sum(c.oracle_cpu_s for c in compared)
    first_ms, second_ms, warm = time_environment(folder / "data", [*tasks["train"], *tasks["heldout_unseen"]])
    return {
        "steps_per_s": round(fast, 1),
        "as_shipped_steps_per_s": round(shipped, 2),
        "ratio": round(fast / shipped, 1),
        "reset_ms": round(max(second_ms), 3),
        "traces_equal": not any(c.difference for c in compared),
        "games": len(compared),
        "steps": sum(c.steps for c in compared),
        "won": sum(c.won for c in compared),
        "first_reset_ms": round(statistics.median(first_ms), 3),
        "as_shipped_reset_ms": round(1e3 * statistics.median(shipped_reset_s), 1),
        "warm_steps_per_s": round(warm, 1),
    }


def time_environment(data: Path, tasks: list[str]) -> tuple[list[float], list[float], float]:
    """Milliseconds of each task's first and second reset, and steps per second of random episodes after them."""
    env = AlfworldEnv(data)
    first_ms: list[float] = []
    second_ms: list[float] = []
    rng = random.Random("environment")
    steps, spent_s = 0, 0.0
    for task in tasks:
        for measured in (first_ms, second_ms):
            start = time.process_time()
            env.reset(task, 0, {})
            measured.append(1e3 * (time.process_time() - start))
        for episode in range(4):
            start = time.process_time()
            _, info = env.reset(task, 0, {})
            over = False
            while not over:
                _, _, terminated, truncated, info = env.step(rng.choice(info["admissible_commands"]))
                over = terminated or truncated
                steps += episode > 0
            spent_s += time.process_time() - start if episode > 0 else 0.0
    return first_ms, second_ms, steps / spent_s


if __name__ == "__main__":
    raise SystemExit(main())
