"""``python -m envs.arithmetic.prepare --out DIR [--quick]``: writes the tasks of this environment's bundle.

DIR/tasks.json lists them by split: ``<kind>_train``, ``<kind>_demonstrations`` and ``<kind>_heldout`` for each kind of
``problems.KINDS``, and ``train``, ``demonstrations`` and ``heldout`` with all kinds in turn. No problem is in two
splits. Two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from envs.arithmetic.problems import KINDS, Problem

SIZES = {"heldout": 200, "train": 1000, "demonstrations": 1000}
QUICK_SIZES = {"heldout": 10, "train": 20, "demonstrations": 20}
DIGITS = (2, 3, 4)
_SEED = "rock-arithmetic-1"  # change it, and every score measured so far is on other problems


def generate(kind: str, count: int, seed: str, known: set[str]) -> Iterator[Problem]:
    """``count`` problems that are not in ``known``, which grows; as many of each number of digits as there are."""
    rng = random.Random(seed)
    found = 0
    while found < count:
        problem = Problem(kind, KINDS[kind].draw(rng, rng.choice(DIGITS)))
        if problem.task not in known:
            known.add(problem.task)
            found += 1
            yield problem


def prepare(out: Path, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Write ``out``/tasks.json; returns what is in it."""
    tasks: dict[str, list[str]] = {}
    known: set[str] = set()
    for split, count in sizes.items():
        by_kind = {kind: [p.task for p in generate(kind, count, f"{_SEED}/{kind}/{split}", known)] for kind in KINDS}
        tasks[split] = list(chain.from_iterable(zip(*by_kind.values(), strict=True)))
        tasks |= {f"{kind}_{split}": names for kind, names in by_kind.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="envs.arithmetic.prepare", description="Write arithmetic tasks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write tasks.json into")
    parser.add_argument("--quick", action="store_true", help="a few dozen tasks, for tests")
    args = parser.parse_args(argv)
    prepare(args.out, QUICK_SIZES if args.quick else SIZES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
