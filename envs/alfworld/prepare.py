"""``python -m envs.alfworld.prepare --out DIR [--quick]``: writes the games of this environment's bundle.

DIR/tasks.json lists the tasks by split; DIR/data holds the games (see ``store``). Splits are made by scene: ``train``
and ``heldout_seen`` are different games in ALFWorld's training scenes, ``heldout_unseen`` are games in its test scenes,
which no training game uses. The seeds are fixed: two runs write the same bytes. Needs the ``alfworld`` wheel and
nothing compiled.

Official games under ``$ALFWORLD_DATA`` are copied into DIR/data, all of them also with --quick: a sandbox sees nothing
of the host. Their splits are ``official_train``, ``official_valid_seen`` and ``official_valid_unseen``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from envs.alfworld.generate import generate
from envs.alfworld.store import OFFICIAL, SPLITS, copy_official, official_name, task_name, write_official
from envs.alfworld.wheel import read_world
from envs.alfworld.world import GameSpec, World

_LOG = logging.getLogger(__name__)

SIZES = {"train": 1500, "demonstrations": 3000, "heldout_seen": 200, "heldout_unseen": 200}
QUICK_SIZES = {"train": 36, "demonstrations": 36, "heldout_seen": 12, "heldout_unseen": 12}
_SEED = "rock-alfworld-1"  # change it, and every score measured so far is on other games


def prepare(
    out: Path, sizes: dict[str, int], *, official: Path | None = None, official_layout: bool = False
) -> dict[str, list[str]]:
    """Write the bundle's data under ``out``; returns the tasks by split. ``official``: where official games may be."""
    world = read_world()
    data = out / "data"
    (data / "games").mkdir(parents=True, exist_ok=True)
    (data / "world.json").write_text(world.to_json())
    tasks: dict[str, list[str]] = {}
    written: set[str] = set()
    for split in SPLITS:
        scenes = world.test_scenes if split == "heldout_unseen" else world.train_scenes
        specs = list(generate(world, scenes, sizes[split], f"{_SEED}/{split}", written))
        (data / "games" / f"{split}.jsonl").write_text("".join(spec.to_json() + "\n" for spec in specs))
        tasks[split] = [task_name(split, i) for i in range(len(specs))]
        _LOG.info("%s: %d games", split, len(specs))
        if official_layout:
            _write_official_split(out / "official" / "json_2.1.1" / split, specs, world)
    if official is not None:
        copied = copy_official(official, data / OFFICIAL)
        tasks |= copied
        _LOG.info(
            "official games in %s: %s", official, {split: len(names) for split, names in copied.items()} or "none"
        )
    (out / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def _write_official_split(folder: Path, specs: list[GameSpec], world: World) -> None:
    for number, spec in enumerate(specs):
        write_official(folder / official_name(spec, f"trial_{number:06d}"), spec, world)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="envs.alfworld.prepare", description="Write ALFWorld games.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/ and tasks.json into")
    parser.add_argument("--quick", action="store_true", help="a few dozen games, for tests")
    parser.add_argument("--official-layout", action="store_true", help="also write game.tw-pddl files under official/")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    official = os.environ.get("ALFWORLD_DATA")
    sizes = QUICK_SIZES if args.quick else SIZES
    prepare(args.out, sizes, official=Path(official) if official else None, official_layout=args.official_layout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
