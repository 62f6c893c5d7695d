"""The packed guest: one file, the same bytes each time, for every Python from 3.8 on."""

from __future__ import annotations

import ast
import glob
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rock.guest import pack
from rock.guest.pack import build_pyz

GUEST = Path(pack.__file__).parent


def other_pythons() -> list[str]:
    """Those of other versions that this machine has and that run (a version manager's shim may not)."""
    found = []
    for version in ("3.8", "3.9", "3.10", "3.12", "3.13"):
        candidates = [
            shutil.which(f"python{version}"),
            *glob.glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python3"),
        ]
        for path in candidates:
            if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                found.append(path)
                break
    return found


def test_two_packs_are_the_same_bytes() -> None:
    first = build_pyz()
    build_pyz.cache_clear()
    assert build_pyz() == first


@pytest.mark.parametrize("name", pack.MODULES)
def test_every_module_is_python_3_8(name: str) -> None:
    ast.parse((GUEST / f"{name}.py").read_text(), feature_version=(3, 8))


def test_no_module_is_forgotten() -> None:
    assert {path.stem for path in GUEST.glob("*.py")} == {*pack.MODULES, "pack"}


def test_it_uses_the_standard_library_alone() -> None:
    for name in pack.MODULES:
        for node in ast.walk(ast.parse((GUEST / f"{name}.py").read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                assert module.startswith("rock.guest") or module.split(".")[0] in sys.stdlib_module_names


def test_the_archive_is_whole() -> None:
    with zipfile.ZipFile(io.BytesIO(build_pyz())) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("python", [sys.executable, *other_pythons()])
def test_it_speaks_over_standard_input_and_output_with_any_python(python: str, tmp_path: Path) -> None:
    (tmp_path / "guest.pyz").write_bytes(build_pyz())
    requests = [
        {"id": 1, "op": "hello"},
        {"id": 2, "op": "exec", "argv": ["cat", "/proc/self/stat"]},
    ]
    process = subprocess.Popen(
        [python, str(tmp_path / "guest.pyz"), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for request in requests:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(10.0) == 0
    assert [(answer["id"], answer["ok"]) for answer in answers] == [(1, True), (2, True)]


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    (tmp_path / "guest.pyz").write_bytes(build_pyz())
    for arguments in (["--bogus"], [], ["--socket", "x", "--stdio"]):
        done = subprocess.run([sys.executable, str(tmp_path / "guest.pyz"), *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert "usage" in done.stderr
