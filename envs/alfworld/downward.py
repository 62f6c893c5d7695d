"""Plans by Fast Downward, the planner that ALFWorld ships: the yardstick of our own planner.

It usually takes a second or two and sometimes never ends, so it runs in a process of its own under a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

from envs.alfworld.planner import Unsolvable
from envs.alfworld.shipped import ShippedPlay
from envs.alfworld.world import GameTexts

TIME_LIMIT_S = 20.0


def downward_plan(texts: GameTexts, time_limit_s: float = TIME_LIMIT_S) -> tuple[str, ...]:
    """Fast Downward's plan from the start of the game. Raises ``Unsolvable`` if it finds none in time."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-m", "envs.alfworld.downward"]
    job = json.dumps(asdict(texts)).encode()
    try:
        done = subprocess.run(argv, input=job, capture_output=True, timeout=time_limit_s, env=environ, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unsolvable(f"Fast Downward found no plan within {time_limit_s:g} s.") from error
    last_line = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode != 0 or not last_line.startswith("["):
        tail = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unsolvable(f"Fast Downward ended with status {done.returncode} and no plan: {tail}")
    return tuple(json.loads(last_line))


def _main() -> int:
    texts = GameTexts(**json.load(sys.stdin))
    plan = ShippedPlay.from_texts(texts).plan()
    sys.stdout.write(json.dumps(plan) + "\n")
    return 0 if plan else 1


if __name__ == "__main__":
    raise SystemExit(_main())
