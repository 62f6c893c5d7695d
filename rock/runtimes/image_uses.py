"""When a sandbox was last started from an image: the time of an empty file under the state directory.

Invariant: noting never fails for its caller; a use that was not noted costs nothing but an earlier eviction.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_FOLDER = "image-uses"


def note_use(home: Path, tag: str) -> None:
    """A sandbox was started from it just now."""
    with contextlib.suppress(OSError):
        path = home / _FOLDER / _file_name(tag)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def used_at_s(home: Path, tag: str) -> float:
    """Unix seconds; 0 if it was not noted."""
    try:
        return (home / _FOLDER / _file_name(tag)).stat().st_mtime
    except OSError:
        return 0.0


def _file_name(tag: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", tag)[:200]
