"""An instance: a repository with the bug as its only commit, the two patches, the row. All by git, on this machine.

The repository lacks the test files that notice the bug; the test patch brings them back. Dates and names of the commit
are fixed: the same mutant gives the same commit.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.swebench.judge.grading import END_MARKER, START_MARKER
from envs.swebench.judge.rows import RowError, image_name
from envs.swebench.make.mutate import Mutant
from envs.swebench.make.source import Package, python_path

LOG_PARSER = "parse_log_pytest"
MAX_FAIL_TO_PASS = 20
_CREATED_AT = "2024-01-01T00:00:00Z"
_HEREDOC = "END_OF_THE_TEST_PATCH"
_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_AUTHOR_NAME": "rock",
    "GIT_AUTHOR_EMAIL": "rock@localhost", "GIT_COMMITTER_NAME": "rock", "GIT_COMMITTER_EMAIL": "rock@localhost",
    "GIT_AUTHOR_DATE": _CREATED_AT, "GIT_COMMITTER_DATE": _CREATED_AT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Effect:
    """What a mutant does to the tests. ``words``: what the failing ones said, by name."""

    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    words: dict[str, str]


def effect(clean: dict[str, str], mutated: dict[str, str], words: dict[str, str]) -> Effect | None:
    """From the statuses without and with the bug; None where it is too weak, too strong, or breaks everything.

    ``clean`` holds tests whose status was the same in every run. Names that the parser cut (a parameter with a space)
    stand for several tests and are left out.
    """
    passing = [name for name, status in clean.items() if status == "PASSED" and name.count("[") == name.count("]")]
    failed = tuple(name for name in passing if mutated.get(name) in ("FAILED", "ERROR"))
    passed = tuple(name for name in passing if mutated.get(name) == "PASSED")
    if not 1 <= len(failed) <= MAX_FAIL_TO_PASS or not passed or len(failed) + len(passed) != len(passing):
        return None
    return Effect(failed, passed, {name: words[name] for name in failed if name in words})


def make_instance(
    package: Package, tree: Path, mutant: Mutant, found: Effect, number: int, out: Path
) -> dict[str, Any]:
    """Write ``out/testbeds/ID.tar.gz`` and return the row. Raises RowError when git fails."""
    instance_id = f"{package.stem}-{number:04d}"
    hidden = sorted({name.split("::")[0] for name in found.fail_to_pass})
    clean = (tree / mutant.path).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        bed = Path(name, "testbed")
        shutil.copytree(tree, bed)
        (bed / mutant.path).write_text(mutant.applied(clean), encoding="utf-8")
        for path in hidden:
            (bed / path).unlink()
        _git(bed, "init", "--quiet", "--initial-branch=main", "--template=")
        _git(bed, "add", "--all", "--force")
        _git(bed, "commit", "--quiet", "--message", f"{package.name} {package.version}")
        base = _git(bed, "rev-parse", "HEAD").strip()
        archive = out / "testbeds" / f"{instance_id}.tar.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(bed, ".", filter=_as_root)
        (bed / mutant.path).write_text(clean, encoding="utf-8")
        patch = _git(bed, "diff")
        _git(bed, "checkout", "--quiet", "--", ".")
        for path in hidden:
            (bed / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / path, bed / path)
        _git(bed, "add", "--all", "--force")
        test_patch = _git(bed, "diff", "--cached")
    return {
        "instance_id": instance_id,
        "repo": f"{package.name}/{package.name}",
        "base_commit": base,
        "version": package.version,
        "created_at": _CREATED_AT,
        "problem_statement": statement(package, found),
        "hints_text": "",
        "patch": patch,
        "test_patch": test_patch,
        "FAIL_TO_PASS": list(found.fail_to_pass),
        "PASS_TO_PASS": list(found.pass_to_pass),
        "environment_setup_commit": base,
        "image": image_name(instance_id, namespace=""),
        "eval_script": eval_script(test_patch, hidden, python_path("/testbed", tree)),
        "log_parser": LOG_PARSER,
        "eval_type": "pass_and_fail",
    }


def eval_script(test_patch: str, hidden: Sequence[str], path: str) -> str:
    """What runs the whole suite with the hidden tests, as the official harness and the judge both run it."""
    files = " ".join(shlex.quote(name) for name in hidden)
    return "\n".join(
        [
            "#!/bin/bash",
            "set -uxo pipefail",
            "cd /testbed",
            f"export PYTHONPATH=/opt/swe/site:{path} PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0",
            f"rm -f {files}",
            f"git apply - <<'{_HEREDOC}'",
            test_patch.rstrip("\n"),
            _HEREDOC,
            f": '{START_MARKER}'",
            TEST_COMMAND,
            f": '{END_MARKER}'",
            f"rm -f {files}",
            "",
        ]
    )


TEST_COMMAND = "python3 -P -m pytest -rA --tb=short -p no:cacheprovider"
"""-P: a module of the repository that is called like one of pytest's is not taken for it."""


def statement(package: Package, found: Effect) -> str:
    """The problem as somebody would report it who has seen the failures and not the code."""
    lines = [f"Since the last change {package.name} {package.version} misbehaves. These checks fail:", ""]
    for name in found.fail_to_pass:
        said = found.words.get(name, "")
        lines.append(f"* `{name.split('::', 1)[-1]}`" + (f": {said[:200]}" if said else ""))
    return "\n".join([*lines, "", "The tests that show it are not in the repository."])


def failure_words(log: str) -> dict[str, str]:
    """What pytest's summary says of each failing test."""
    found = {}
    for line in log.splitlines():
        if line.startswith("FAILED ") and " - " in line:
            name, _, said = line.removeprefix("FAILED ").partition(" - ")
            found[name.strip()] = said.strip()
    return found


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _git(cwd: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env={**os.environ, **_GIT}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise RowError("git is not installed; expected it on the path to make repositories.") from error
    if done.returncode != 0:
        raise RowError(f"git {' '.join(arguments)} failed in {cwd}: {done.stderr.strip()[-500:]}")
    return done.stdout
