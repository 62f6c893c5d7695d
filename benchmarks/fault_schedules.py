"""``python -m benchmarks.fault_schedules [--quick] [--schedules N] [--seed S]``: random faults, in virtual time.

Runs the simulation of `tests/chaos` (the real control plane, nodes, guests' server and SDK; in memory are network,
clock and sandboxes) under N random schedules of faults, on all cores, and prints one JSON object as its last line:
``schedules``, ``violations`` (0, or the exit code is 1), the episodes by outcome, the ``steps`` that environments took,
and ``virtual_s``, what all of it would have lasted. A schedule that breaks an invariant is shrunk and printed as a call
that repeats it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, note, seed, settings

_SIMULATION = Path(__file__).parents[1] / "tests" / "chaos"
_FULL, _QUICK = 10_000, 200
_TELL_EVERY = 250


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.fault_schedules", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} schedules")
    parser.add_argument("--schedules", type=int, default=0, help=f"how many; default {_FULL}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    wanted = args.schedules or (_QUICK if args.quick else _FULL)
    workers = min(os.cpu_count() or 1, wanted)
    shares = [wanted // workers + (number < wanted % workers) for number in range(workers)]
    began = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(work, shares, [args.seed * 1000 + number for number in range(workers)]))
    total = sum((counts for counts, _ in found), Counter[str]())
    violations = [failure for _, failure in found if failure]
    for failure in violations:
        print(failure)
    print(json.dumps({"violations": len(violations), **total, "wall_s": round(time.monotonic() - began, 1)}))
    return 1 if violations else 0


def work(count: int, random_seed: int) -> tuple[Counter[str], str]:
    """One worker's share: what was counted, and how the first schedule failed that did."""
    sys.path.insert(0, str(_SIMULATION))
    schedules, simulate = import_module("schedules").schedules, import_module("world").simulate
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()

    @seed(random_seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules())
    def each(schedule: Any) -> None:
        note(f"from schedule import *; from world import simulate\nsimulate({schedule!r})\n{schedule}")
        counts.update(simulate(schedule))
        counts["schedules"] += 1
        if counts["schedules"] % _TELL_EVERY == 0:
            print(f"seed {random_seed}: {counts['schedules']} of {count}", file=sys.stderr, flush=True)

    try:
        each()
    except AssertionError as error:
        return counts, "\n".join([str(error), *getattr(error, "__notes__", [])])
    return counts, ""


if __name__ == "__main__":
    raise SystemExit(main())
