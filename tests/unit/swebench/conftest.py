"""A repository of two files with a bug, as `rock env make-swe` would write it, and the environments over it."""

from __future__ import annotations

import json
import shutil
import site
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envs.swebench import prepare as agent_side
from envs.swebench.env import SweEnv
from envs.swebench.judge import prepare as judge_side
from envs.swebench.judge.env import JudgeEnv
from envs.swebench.make.instance import Effect, make_instance
from envs.swebench.make.mutate import mutants
from envs.swebench.make.source import Package

CODE = "def least(a, b):\n    return a if a < b else b\n\n\ndef twice(a):\n    return a + a\n"
TESTS = """import calc


def test_least():
    assert calc.least(1, 2) == 1


def test_equal():
    assert calc.least(3, 3) == 3


def test_twice():
    assert calc.twice(4) == 8
"""
PYTEST = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")


@dataclass(frozen=True)
class Bed:
    """``row``: of the one instance. ``root`` stands for /testbed, where the row's script works."""

    row: dict[str, Any]
    root: Path
    agent: SweEnv
    judge: JudgeEnv


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A data set of one instance: ``twice`` returns the difference."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree"
        (tree / "tests").mkdir(parents=True)
        (tree / "calc.py").write_text(CODE)
        (tree / "tests" / "test_twice.py").write_text(TESTS.replace("def test_equal", "def test_same"))
        (tree / "tests" / "test_kept.py").write_text(
            "import calc\n\n\ndef test_kept():\n    assert calc.least(1, 2) == 1\n"
        )
        mutant = next(m for m in mutants("calc.py", CODE) if m.kind == "arithmetic")
        found = Effect(
            ("tests/test_twice.py::test_twice",),
            ("tests/test_twice.py::test_least", "tests/test_twice.py::test_same", "tests/test_kept.py::test_kept"),
            {"tests/test_twice.py::test_twice": "assert 0 == 8"},
        )
        row = make_instance(Package("calc", "1.0"), tree, mutant, found, 1, folder / "data")
        (folder / "data" / "rows.jsonl").write_text(json.dumps(row) + "\n")
        yield folder / "data"


@pytest.fixture
def bed(made: Path, tmp_path: Path) -> Bed:
    """Both environments over a directory of their own in the place of /testbed."""
    data, root = tmp_path / "made", tmp_path / "testbed"
    root.mkdir()
    shutil.copytree(made, data)
    packages = Path(next(p for p in site.getsitepackages() if Path(p, "pytest").is_dir()))
    (data / "site").mkdir()
    for package in PYTEST:
        (data / "site" / package).symlink_to(packages / package)
    row = json.loads((data / "rows.jsonl").read_text())
    row["eval_script"] = (
        row["eval_script"].replace("/testbed", str(root)).replace("/opt/swe/site", str(data / "site"))
    ).replace("python3 ", f"{shutil.which('python3')} ")
    (data / "rows.jsonl").write_text(json.dumps(row) + "\n")
    agent_side.prepare(tmp_path / "agent", data)
    judge_side.prepare(tmp_path / "judge", data)
    agent = SweEnv(tmp_path / "agent" / "data", root)
    judge = JudgeEnv(tmp_path / "judge" / "data", root, scratch=tmp_path)
    return Bed(row, root, agent, judge)
