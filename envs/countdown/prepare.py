"""``python -m envs.countdown.prepare --out DIR [--quick]``: writes the tasks of this environment's bundle.

DIR/tasks.json lists them by split, ``<level>_train``, ``<level>_demonstrations`` and ``<level>_heldout`` for each level
of ``generate.LEVELS``. No instance is in two splits, in whatever order of its numbers. Two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from envs.countdown.generate import LEVELS, generate

SIZES = {"heldout": 500, "train": 4000, "demonstrations": 4000}
QUICK_SIZES = {"heldout": 20, "train": 40, "demonstrations": 40}
_SEED = "rock-countdown-1"  # change it, and every score measured so far is on other instances


def prepare(out: Path, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Write ``out``/tasks.json; returns what is in it."""
    tasks: dict[str, list[str]] = {}
    known: set[tuple[str, tuple[int, ...], int]] = set()
    for name, level in LEVELS.items():
        for split, count in sizes.items():
            instances = generate(level, count, f"{_SEED}/{name}/{split}", known)
            tasks[f"{name}_{split}"] = [instance.task for instance in instances]
    out.mkdir(parents=True, exist_ok=True)
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="envs.countdown.prepare", description="Write Countdown tasks.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write tasks.json into")
    parser.add_argument("--quick", action="store_true", help="a few dozen tasks, for tests")
    args = parser.parse_args(argv)
    prepare(args.out, QUICK_SIZES if args.quick else SIZES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
