"""Files in and out, in pieces: one request moves at most a few MiB, so probes are answered in between."""

from __future__ import annotations

import os
import stat

from rock.guest.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

MAX_READ_BYTES = 8 << 20


def read(path: str, offset: int, length: int) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            wanted = min(length, MAX_READ_BYTES)
            data = file.read(wanted)
            eof = len(data) < wanted or not file.read(1)
    except OSError as error:
        raise refused(path, error) from error
    return {"data": data, "eof": eof}


def write(path: str, data: bytes, append: bool, mode: Any) -> dict[str, Any]:
    """Makes missing directories on the way."""
    try:
        parent = os.path.dirname(path)
        if parent:
            os.makedirs(parent, exist_ok=True)
        with open(path, "ab" if append else "wb") as file:
            file.write(data)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            size = os.fstat(file.fileno()).st_size if append else len(data)
    except OSError as error:
        raise refused(path, error) from error
    return {"size_bytes": size}


def listing(path: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    try:
        with os.scandir(path) as found:
            for entry in found:
                info = entry.stat(follow_symlinks=False)
                entries.append(
                    {
                        "name": entry.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                        "kind": kind(info.st_mode),
                        "size_bytes": info.st_size,
                        "mtime_s": info.st_mtime,
                    }
                )
    except OSError as error:
        raise refused(path, error) from error
    entries.sort(key=lambda entry: entry["name"])
    return {"entries": entries}


def kind(mode: int) -> str:
    for test, name in ((stat.S_ISREG, "file"), (stat.S_ISDIR, "dir"), (stat.S_ISLNK, "link")):
        if test(mode):
            return name
    return "other"


def refused(path: str, error: OSError) -> GuestError:
    code = "not-found" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else "invalid-request"
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        code = "storage-error"
    return GuestError(code, "%s: %s" % (path, error.strerror or error))
