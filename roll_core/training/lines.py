"""Files of JSON lines that may be appended to for ever: rotated, bounded, and whole after ``kill -9``.

Invariants: a line is written with one call and needs no flush, so what was written outlives the process; a line torn by
a crash is cut off when the file is opened again; the parts together never exceed ``max_bytes`` by more than one line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roll_core.errors import RecordError

_PARTS = 8
"""A full file is cut into so many parts; the oldest goes when another is begun, so 7/8 of the limit is always kept."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line is."""

    path: Path
    offset: int


class Lines:
    """``NAME.jsonl`` is written to; when it is full it becomes ``NAME-000001.jsonl`` and so on, the oldest go."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._part_bytes = max(1, max_bytes // _PARTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._open()
        self._lock = threading.Lock()

    def append(self, line: bytes) -> None:
        """``line`` without its end, from any thread. Raises RecordError when the disk does not take it."""
        with self._lock:
            self._append(line + b"\n")

    def _append(self, data: bytes) -> None:
        try:
            if self._bytes and self._bytes + len(data) > self._part_bytes:
                self._rotate()
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise RecordError(
                f"{self._path} cannot be written: {error}. Free space there and resume the run."
            ) from error
        self._bytes += written
        if written < len(data):
            raise RecordError(f"{self._path} took {written} of {len(data)} bytes: the disk is full. Free space there.")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._bytes = _cut_torn_line(descriptor)
        return descriptor

    def _rotate(self) -> None:
        self.close()
        parts = _old_parts(self._path)
        number = int(parts[-1].stem.rpartition("-")[2]) + 1 if parts else 1
        self._path.rename(self._path.with_name(f"{self._path.stem}-{number:06d}{self._path.suffix}"))
        for path in _old_parts(self._path)[: -(_PARTS - 1)]:
            path.unlink()
        self._descriptor = self._open()


def parts(path: Path) -> list[Path]:
    """The files that :class:`Lines` made of ``path`` and that are still there, the oldest first."""
    return [*_old_parts(path), *([path] if path.exists() else [])]


def read(path: Path) -> Iterator[tuple[Place, bytes]]:
    """Every whole line of all parts, in the order in which they were written."""
    for part in parts(path):
        with part.open("rb") as file:
            offset = 0
            for line in file:
                if line.endswith(b"\n"):  # else a crash, or a writer at work
                    yield Place(part, offset), line
                offset += len(line)


def read_at(place: Place) -> bytes:
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.readline()


def _old_parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-[0-9][0-9][0-9][0-9][0-9][0-9]{path.suffix}"))


def _cut_torn_line(descriptor: int) -> int:
    """Cut off what follows the last end of a line; returns the size that is left."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end
