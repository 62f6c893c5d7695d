"""What a sandbox takes, counted from outside: by the kernel's control groups, its process tree, the files on the disk.

Blocking, microseconds to milliseconds each. Never raises: what cannot be read is None.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_BLOCK_BYTES = 512
# Unlinked files there are memory, which has a limit of its own.
_IN_MEMORY = ("/tmp/", "/dev/", "/memfd:", "/SYSV")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_s: float
    """Processor seconds since it began."""
    memory_bytes: int
    """Without the files' pages that the kernel would give up for others."""
    pids: int


def usage_in_groups(groups: Iterable[Path]) -> Usage | None:
    """By the control groups of version 1 (one per controller) or 2 (one for all); None where they say too little."""
    cpu_s = memory = pids = None
    for group in groups:
        if (found := _number(group / "cpuacct.usage")) is not None:
            cpu_s = found / 1e9
        elif (found := _field(group / "cpu.stat", "usage_usec")) is not None:
            cpu_s = found / 1e6
        if (found := _number(group / "memory.usage_in_bytes")) is not None:
            memory = found - (_field(group / "memory.stat", "total_inactive_file") or 0)
        elif (found := _number(group / "memory.current")) is not None:
            memory = found - (_field(group / "memory.stat", "inactive_file") or 0)
        if (found := _number(group / "pids.current")) is not None:
            pids = found
    if cpu_s is None or memory is None or pids is None:
        return None
    return Usage(cpu_s, max(0, memory), pids)


def usage_of_tree(pid: int) -> Usage | None:
    """By the process tree below ``pid``, itself left out: memory that processes share counts for each of them."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return None
    cpu_s, memory, pids = 0.0, 0, 0
    for process in below:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            times = process.cpu_times()
            cpu_s += times.user + times.system + times.children_user + times.children_system
            memory += process.memory_info().rss
            pids += 1
    return Usage(round(cpu_s, 2), memory, pids)


def written_bytes(places: Iterable[Path], pids: Iterable[int], enough: int) -> int:
    """Space on the disk that the files in ``places`` take, and those that ``pids`` hold open though they are unlinked
    (as far as we may see them). A file with several names counts once. Stops counting beyond ``enough``."""
    seen: set[tuple[int, int]] = set()
    total = _unlinked_bytes(pids, seen)
    folders = [os.fspath(place) for place in places]
    while folders and total <= enough:
        try:
            found = os.scandir(folders.pop())
        except OSError:
            continue  # gone meanwhile, or not ours to read
        with found:
            for entry in found:
                with contextlib.suppress(OSError):
                    total += _taken(entry.stat(follow_symlinks=False), seen)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def _taken(info: os.stat_result, seen: set[tuple[int, int]]) -> int:
    if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
        if (info.st_dev, info.st_ino) in seen:
            return 0
        seen.add((info.st_dev, info.st_ino))
    return info.st_blocks * _BLOCK_BYTES


def _unlinked_bytes(pids: Iterable[int], seen: set[tuple[int, int]]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = f"/proc/{pid}/fd/{name}"
                    target = os.readlink(path)
                    if not target.endswith(_DELETED) or target.startswith(_IN_MEMORY):
                        continue
                    info = os.stat(path)
                    if stat.S_ISREG(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
                        seen.add((info.st_dev, info.st_ino))
                        total += info.st_blocks * _BLOCK_BYTES
    return total


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
