"""``python -m envs.swebench.judge.prepare --out DIR [--data PATH] [--quick]``: what the judge's image needs.

``--data``, else ``$SWEBENCH_DATA``, is a directory as ``rock env make-swe`` writes it: ``rows.jsonl``,
``testbeds/INSTANCE.tar.gz`` and ``site/``. Written are DIR/tasks.json and DIR/data with the rows, **without their
reference solutions**, the repositories, and what their tests import. ``--quick``: six instances.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from envs.swebench.judge.grading import parsers
from envs.swebench.judge.rows import Row, RowError, read_rows

QUICK = 6
_FIELDS = {"fail_to_pass": "FAIL_TO_PASS", "pass_to_pass": "PASS_TO_PASS"}


def instances(data: Path, *, quick: bool) -> list[Row]:
    """The rows that can be played. Raises RowError naming what one lacks."""
    rows = read_rows(data / "rows.jsonl")
    for row in rows:
        if not row.runnable:
            raise RowError(
                f"{row.instance_id} has no eval_script and log_parser; expected a row of SWE-bench's 5.x format."
            )
        if not (data / "testbeds" / f"{row.instance_id}.tar.gz").is_file():
            raise RowError(f"{data} has no testbeds/{row.instance_id}.tar.gz; expected the repository of every row.")
    return rows[:QUICK] if quick else rows


def copy_repositories(data: Path, rows: list[Row], target: Path) -> None:
    """The repositories of ``rows``, and what their tests import, into ``target``."""
    (target / "testbeds").mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = f"{row.instance_id}.tar.gz"
        shutil.copyfile(data / "testbeds" / name, target / "testbeds" / name)
    if (data / "site").is_dir():
        shutil.copytree(data / "site", target / "site", dirs_exist_ok=True)


def prepare(out: Path, data: Path, *, quick: bool = False) -> list[str]:
    """Write the judge's data under ``out``; returns the instance ids. Raises RowError."""
    rows = instances(data, quick=quick)
    if unknown := {row.log_parser for row in rows} - set(parsers()):
        raise RowError(f"log_parser {', '.join(sorted(unknown))} is unknown; expected {', '.join(sorted(parsers()))}.")
    target = out / "data"
    (target / "rows").mkdir(parents=True, exist_ok=True)
    for row in rows:
        fields = {_FIELDS.get(name, name): value for name, value in asdict(row).items()}
        hidden = fields | {"patch": "(not here)"}
        (target / "rows" / f"{row.instance_id}.json").write_text(json.dumps(hidden), encoding="utf-8")
    copy_repositories(data, rows, target)
    ids = [row.instance_id for row in rows]
    (out / "tasks.json").write_text(json.dumps({"test": ids}, indent=1) + "\n")
    return ids


def arguments(prog: str, argv: list[str] | None) -> tuple[Path, Path, bool]:
    """(out, data, quick) of the command line. Raises RowError when there is no data."""
    parser = argparse.ArgumentParser(prog=prog, description="Write a data set of repositories with bugs.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/ and tasks.json into")
    parser.add_argument("--data", default=os.environ.get("SWEBENCH_DATA", ""), help="default: $SWEBENCH_DATA")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} instances, for tests")
    args = parser.parse_args(argv)
    if not args.data:
        raise RowError(
            "No data: set SWEBENCH_DATA to a directory that `rock env make-swe PACKAGE==VERSION --out DIR` wrote."
        )
    return args.out, Path(args.data).expanduser().absolute(), args.quick


def main(argv: list[str] | None = None) -> int:
    try:
        out, data, quick = arguments("envs.swebench.judge.prepare", argv)
        prepare(out, data, quick=quick)
    except (RowError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
