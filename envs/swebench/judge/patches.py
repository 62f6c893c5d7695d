"""What of a submitted patch is judged: everything but tests and what decides how tests are run.

A section of a patch is what it does to one file. Pure text; whether a patch applies is git's to say.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise

_TEST_FOLDERS = {"tests", "test", "testing"}
_MACHINERY = (
    "test_*.py", "*_test.py", "tests.py", "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml",
    "tox.ini", "setup.cfg", "pyproject.toml", "sitecustomize.py", "usercustomize.py", "*.pth",
)  # fmt: skip
# Modules that a folder on the path could put before the ones that run the tests.
_RUNNERS = {"pytest", "_pytest", "pluggy", "iniconfig", "unittest"}
_HEADER = re.compile(r'^diff --git "?a/(.*?)"? "?b/(.*?)"?$')


@dataclass(frozen=True, slots=True)
class Judged:
    """The part of a patch that counts, and the files whose changes were left out."""

    patch: str
    left_out: tuple[str, ...]


def is_protected(path: str, tests: Collection[str] = ()) -> bool:
    """Whether a submission may not change ``path``. ``tests``: files that the hidden tests bring with them."""
    path = posixpath.normpath(path)
    parts = path.split("/")
    name = parts[-1]
    return (
        path in tests
        or bool(_TEST_FOLDERS.intersection(parts[:-1]))
        or any(fnmatch(name, pattern) for pattern in _MACHINERY)
        or bool(_RUNNERS.intersection([*parts[:-1], name.removesuffix(".py")]))
    )


def files_of(patch: str) -> list[str]:
    """Every path that a patch names, old or new, in order and each once."""
    return list(dict.fromkeys(path for _, paths in _sections(patch) for path in paths))


def judged(patch: str, tests: Collection[str] = ()) -> Judged:
    """Leave out what touches protected files. A section that names no file at all stays: git will say what it is."""
    kept: list[str] = []
    left_out: list[str] = []
    for text, paths in _sections(patch):
        if any(is_protected(path, tests) for path in paths):
            left_out += paths
        else:
            kept.append(text)
    return Judged("".join(kept), tuple(dict.fromkeys(left_out)))


def _sections(patch: str) -> list[tuple[str, tuple[str, ...]]]:
    """(text, paths) of each file's part, whose texts together are ``patch``."""
    lines = patch.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if _starts(lines, i, line)]
    if not starts:
        return [(patch, ())] if patch else []
    bounds = [0, *starts[1:], len(lines)]
    return [("".join(lines[begin:end]), _paths(lines[begin:end])) for begin, end in pairwise(bounds)]


def _starts(lines: list[str], index: int, line: str) -> bool:
    if line.startswith("diff --git "):
        return True
    plain = line.startswith("--- ") and index + 1 < len(lines) and lines[index + 1].startswith("+++ ")
    return plain and not _under_header(lines, index)


def _under_header(lines: list[str], index: int) -> bool:
    """Whether ``---`` belongs to the ``diff --git`` above it."""
    for line in reversed(lines[:index]):
        if line.startswith("diff --git "):
            return True
        if not line.startswith(("index ", "new file", "deleted file", "old mode", "new mode", "similarity", "rename ")):
            return False
    return False


def _paths(lines: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for line in lines:
        line = line.rstrip("\r\n")
        if header := _HEADER.match(line):
            found += header.groups()
        elif line.startswith(("rename from ", "rename to ", "copy from ", "copy to ")):
            found.append(line.split(" ", 2)[2].strip('"'))
        elif line.startswith(("--- ", "+++ ")):
            path = line[4:].split("\t")[0].strip().strip('"')
            if path != "/dev/null":
                found.append(path.split("/", 1)[1] if path.startswith(("a/", "b/")) else path)
        elif line.startswith("@@"):
            break
    return tuple(dict.fromkeys(found))
