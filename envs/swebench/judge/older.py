"""Rows of SWE-bench before 5.0, which do not say how they are evaluated: their scripts and parsers come from the last
release of ``swebench`` that knew (4.1), fetched with pip for this alone.

Its packages are entered without running their ``__init__``, in a process of its own: ``python -m
envs.swebench.judge.older`` reads rows as JSON on standard input and writes {instance: [script, parser, type]}.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from envs.swebench.judge.rows import Row, RowError

RELEASE = "swebench==4.1.0"


def completed(rows: Sequence[Row]) -> list[Row]:
    """``rows``, those that lack it with script and parser. Blocking; needs pip and an index if there are such.

    Raises RowError naming the instances of which that release knows nothing.
    """
    older = [row for row in rows if not row.runnable]
    if not older:
        return list(rows)
    found = _ask([asdict(row) for row in older])
    if unknown := [row for row in older if row.instance_id not in found]:
        names = ", ".join(f"{row.instance_id} ({row.repo} {row.version})" for row in unknown[:5])
        raise RowError(
            f"{len(unknown)} rows have no eval_script and log_parser, and {RELEASE} does not know their repository and "
            f"version: {names}. Expected rows of SWE-bench's 5.x format."
        )
    return [_with(row, found[row.instance_id]) if row.instance_id in found else row for row in rows]


def _with(row: Row, how: Sequence[str]) -> Row:
    script, parser, kind = how
    return replace(row, eval_script=script, log_parser=parser, eval_type=kind)


def _ask(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "--no-deps", "--target", folder, RELEASE], f"pip install {RELEASE}")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *filter(None, sys.path)])}
        answer = _run([sys.executable, "-m", __name__], "asking it", environ=environ, given=json.dumps(rows))
    found: dict[str, list[str]] = json.loads(answer)
    return found


def _run(argv: Sequence[str], what: str, *, environ: Mapping[str, str] | None = None, given: str = "") -> str:
    done = subprocess.run(argv, env=environ, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RowError(f"Rows of the older format need {RELEASE}; {what} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


# --- in the process that has the older release ------------------------------------------------------------------------


def _enter() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Its constants, log parsers and scripts, without what they are reached through: cloud clients, data sets."""
    from unidiff.patch import PatchSet

    place = next(Path(folder) / "swebench" for folder in sys.path if (Path(folder) / "swebench").is_dir())
    for name, path in (("swebench", place), ("swebench.harness", place / "harness")):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    utils: Any = ModuleType("swebench.harness.utils")
    utils.__getattr__ = lambda _: None  # what else is imported from there is not called for scripts
    utils.get_modified_files = lambda patch: [
        one.source_file.removeprefix("a/") for one in PatchSet(patch) if one.source_file != "/dev/null"
    ]
    sys.modules[utils.__name__] = utils
    constants, parsers, scripts = (
        importlib.import_module(f"swebench.harness.{name}")
        for name in ("constants", "log_parsers", "test_spec.create_scripts")
    )
    return constants, parsers, scripts


def main() -> int:
    constants, parsers, scripts = _enter()
    found = {}
    for row in json.load(sys.stdin):
        specs = constants.MAP_REPO_VERSION_TO_SPECS.get(row["repo"], {}).get(row["version"])
        parser = parsers.MAP_REPO_TO_PARSER.get(row["repo"])
        if specs is None or parser is None:
            continue
        lines = scripts.make_eval_script_list(row, specs, "testbed", "/testbed", row["base_commit"], row["test_patch"])
        script = "\n".join(["#!/bin/bash", "set -uxo pipefail", *lines]) + "\n"
        kind = "fail_only" if row["repo"] in constants.FAIL_ONLY_REPOS else "pass_and_fail"
        found[row["instance_id"]] = [script, parser.__name__, kind]
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
