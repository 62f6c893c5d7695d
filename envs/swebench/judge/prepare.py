"""``python -m envs.swebench.judge.prepare --out DIR [--data PATH] [--quick]``: what the judge's image needs.

``--data``, else ``$SWEBENCH_DATA``, is a directory as ``rock env make-swe`` writes it (``rows.jsonl``,
``testbeds/INSTANCE.tar.gz`` and ``site/``), or a file or directory of rows of SWE-bench or its relatives. Written are
DIR/tasks.json and DIR/data with the rows, **without their reference solutions**, the repositories, and what their tests
import. ``--quick``: six instances.

An instance without an archive is played in its official image: DIR/images.json names it, and DIR/task-data/INSTANCE
holds what only its sandbox gets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from envs.swebench.judge.grading import parsers
from envs.swebench.judge.older import completed
from envs.swebench.judge.rows import Row, RowError, image_name, read_rows

QUICK = 6
_FIELDS = {"fail_to_pass": "FAIL_TO_PASS", "pass_to_pass": "PASS_TO_PASS"}


def instances(data: Path, *, quick: bool) -> list[Row]:
    """The rows of the data set. Raises RowError."""
    file = data / "rows.jsonl"
    rows = read_rows(file if file.is_file() else data)
    return rows[:QUICK] if quick else rows


def has_archive(data: Path, row: Row) -> bool:
    """Whether the repository is in the data set, and not in an image of the instance's own."""
    return (data / "testbeds" / f"{row.instance_id}.tar.gz").is_file()


def write(out: Path, folder: str, row: Row, content: Mapping[str, object], *, own_image: bool) -> None:
    """What a sandbox finds as ``data/FOLDER/INSTANCE.json``: that of ``row`` alone, if it has an image of its own."""
    target = (out / "task-data" / row.instance_id if own_image else out / "data") / folder
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{row.instance_id}.json").write_text(json.dumps(content), encoding="utf-8")


def write_environment(data: Path, rows: list[Row], out: Path) -> None:
    """The repositories of ``rows`` and what their tests import, or the names of their images."""
    with_archive = [row for row in rows if has_archive(data, row)]
    target = out / "data"
    (target / "testbeds").mkdir(parents=True, exist_ok=True)
    for row in with_archive:
        name = f"{row.instance_id}.tar.gz"
        shutil.copyfile(data / "testbeds" / name, target / "testbeds" / name)
    if with_archive and (data / "site").is_dir():
        shutil.copytree(data / "site", target / "site", dirs_exist_ok=True)
    images = {
        row.instance_id: list(dict.fromkeys((row.image, image_name(row.instance_id, namespace=""))))
        for row in rows
        if row not in with_archive
    }
    (out / "images.json").write_text(json.dumps(images, indent=1) + "\n", encoding="utf-8")


def prepare(out: Path, data: Path, *, quick: bool = False) -> list[str]:
    """Write the judge's data under ``out``; returns the instance ids. Raises RowError."""
    rows = completed(instances(data, quick=quick))
    if unknown := {row.log_parser for row in rows} - set(parsers()):
        raise RowError(f"log_parser {', '.join(sorted(unknown))} is unknown; expected {', '.join(sorted(parsers()))}.")
    for row in rows:
        fields = {_FIELDS.get(name, name): value for name, value in asdict(row).items()}
        write(out, "rows", row, fields | {"patch": "(not here)"}, own_image=not has_archive(data, row))
    write_environment(data, rows, out)
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
            "No data: set SWEBENCH_DATA to a directory that `rock env make-swe PACKAGE==VERSION --out DIR` wrote, "
            "or to a file or directory of SWE-bench's rows."
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
