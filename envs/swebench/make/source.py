"""A package's source distribution, and what its tests import, fetched with pip on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.swebench.judge.patches import is_protected
from envs.swebench.judge.rows import RowError

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._+!-]*)$")
_NO_SOURCES = {"docs", "doc", "examples", "bench", "benchmarks", "setup.py", "noxfile.py", "build"}

KNOWN = {
    "toolz": ("1.2.0", ()),
    "boltons": ("26.2.0", ()),
    "tinydb": ("4.9.0", ("pyyaml",)),
    "itsdangerous": ("2.2.0", ("freezegun",)),
    "markupsafe": ("3.0.4", ()),
}
"""Packages that were tried: the version, and what their tests need beside pytest."""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str

    @property
    def stem(self) -> str:
        """How the ids of its instances begin."""
        return f"{self.name}__{self.name}-{self.version}"


def parse_requirement(text: str) -> Package:
    """``NAME==VERSION``, or the name alone of one that is known here. Raises RowError."""
    if text.lower() in KNOWN:
        return Package(text.lower(), KNOWN[text.lower()][0])
    found = _REQUIREMENT.match(text)
    if found is None:
        known = ", ".join(f"{name}=={version}" for name, (version, _) in KNOWN.items())
        raise RowError(f"{text!r} names no package; expected NAME==VERSION, for instance one of {known}.")
    return Package(found.group(1).lower(), found.group(2))


def fetch(package: Package, target: Path) -> Path:
    """Unpack the package's source distribution as ``target``. Blocking. Raises RowError with pip's last words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = f"{package.name}=={package.version}"
        _pip("download", "--no-binary", package.name, "--no-deps", "--dest", str(folder), wanted)
        archives = sorted(folder.glob("*.tar.gz"))
        if not archives:
            raise RowError(f"{wanted} has no source distribution as .tar.gz; expected one on the package index.")
        with tarfile.open(archives[0]) as tar:
            tar.extractall(folder / "unpacked", filter="data")
        shutil.move(next((folder / "unpacked").iterdir()), target)
    for left in (*target.rglob("*.egg-info"), *target.rglob("__pycache__")):
        shutil.rmtree(left)
    return target


def install_site(packages: Sequence[Package], extra: Sequence[str], site: Path) -> None:
    """What the tests import beside the packages themselves, into ``site``. Blocking; raises RowError."""
    wanted = ["pytest", *(need for p in packages for need in KNOWN.get(p.name, ("", ()))[1]), *extra]
    shutil.rmtree(site, ignore_errors=True)
    _pip("install", "--target", str(site), *dict.fromkeys(wanted))
    for left in (*site.rglob("__pycache__"), site / "bin"):
        shutil.rmtree(left, ignore_errors=True)


def _pip(command: str, *arguments: str) -> None:
    argv = [sys.executable, "-m", "pip", command, "--no-input", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise RowError(f"pip {command} {' '.join(arguments[-2:])} failed: {errors[-1]:.500}")


def source_files(tree: Path) -> list[str]:
    """The modules a bug may be in: neither tests nor what only builds, documents or measures the package."""
    found = []
    for path in sorted(tree.rglob("*.py")):
        name = path.relative_to(tree).as_posix()
        if not is_protected(name) and not _NO_SOURCES.intersection(name.split("/")):
            found.append(name)
    return found


def python_path(root: str, tree: Path) -> str:
    """The package's modules come from the repository, under ``src`` where it has one."""
    return f"{root}/src" if (tree / "src").is_dir() else root
