"""Which process serves a state directory: one at a time, known by a lock that dies with it.

Invariants: whoever holds the lock on ``server.lock`` is the server of the directory, and nobody else; the kernel frees
it when the process ends, however it ends, so what a dead server left behind never blocks. ``server.json`` only says
where to find the holder; the lock file itself says who it is, for one that is still starting.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rock.cli._errors import storage_error
from rock.domain.errors import Conflict
from rock.sdk.home import ServerFile, read_server, server_path


def log_path(home: Path) -> Path:
    """Where a platform started with -d writes its log."""
    return home / "logs" / "server.log"


def make_home(home: Path) -> None:
    """Create the directories. Raises StorageError (platform) if the disk refuses."""
    try:
        log_path(home).parent.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
    except OSError as error:
        raise storage_error(error) from error


def running_server(home: Path) -> ServerFile | None:
    """The server of this directory, if one lives; what a dead one left counts as none."""
    server = read_server(home)
    return server if server is not None and server.alive else None


def starting_server(home: Path) -> ServerFile | None:
    """The server that has the lock and does not yet say where it serves; its URL is empty."""
    if not lock_is_held(home) or running_server(home) is not None:
        return None
    try:
        raw = json.loads((home / "server.lock").read_text())
        server = ServerFile(int(raw["pid"]), "", datetime.fromisoformat(raw["started_at"]), raw["process_started_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if server.alive else None


@contextmanager
def serving(home: Path, *, as_server: bool = True) -> Iterator[None]:
    """Be the server of ``home`` inside the block, or (``as_server=False``) keep others from it for a moment.

    Raises Conflict (caller) if another process is.
    """
    make_home(home)
    try:
        handle = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise storage_error(error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Conflict(
            f"Another platform serves {home}.", hint="`rock ps` shows it; give another directory with --home."
        ) from error
    try:
        # A dead server's file would send clients to an address that now belongs to nobody.
        server_path(home).unlink(missing_ok=True)
        _write_lock(handle, _identity() if as_server else {})
        yield
    finally:
        server_path(home).unlink(missing_ok=True)
        os.close(handle)


def _write_lock(handle: int, content: dict[str, object]) -> None:
    try:
        os.truncate(handle, 0)
        os.write(handle, json.dumps(content).encode())
    except OSError as error:
        raise storage_error(error) from error


def _identity() -> dict[str, object]:
    """What tells this process from a later one with its pid."""
    return {
        "pid": os.getpid(),
        "started_at": datetime.now(UTC).isoformat(),
        "process_started_s": psutil.Process().create_time(),
    }


def lock_is_held(home: Path) -> bool:
    """Whether some process serves ``home``, even if it has not yet said where."""
    try:
        handle = os.open(home / "server.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def publish(home: Path, url: str) -> None:
    """Say where this process serves. Written beside and renamed, so that no reader sees half a file."""
    content = {**_identity(), "url": url}
    beside = server_path(home).with_suffix(".new")
    try:
        beside.write_text(json.dumps(content))
        beside.replace(server_path(home))
    except OSError as error:
        raise storage_error(error) from error
