"""Which process serves a state directory: one at a time, known by a lock that dies with it.

Invariants: whoever holds the lock on ``server.lock`` is the server of the directory, and nobody else; the kernel frees
it when the process ends, however it ends, so what a dead server left behind never blocks. The guardian that starts the
server again holds ``guardian.lock`` in the same way. ``server.json`` only says where to find them; the lock files
themselves say who holds them, for a server that is still starting and for a guardian between two servers.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from rock.cli import _guardian
from rock.cli._errors import storage_error
from rock.domain.errors import Conflict
from rock.sdk.home import ServerFile, read_server, server_path

_SERVER_LOCK = "server.lock"


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
    return _holder(home / _SERVER_LOCK) if running_server(home) is None else None


def guardian(home: Path) -> ServerFile | None:
    """The guardian of this directory's server, whether or not that runs at this moment; its URL is empty."""
    return _holder(home / _guardian.LOCK)


def processes(home: Path) -> list[ServerFile]:
    """The guardian and the server of this directory, as far as they run: what `rock down` ends, in this order."""
    found = (guardian(home), running_server(home) or starting_server(home))
    return [one for one in found if one is not None]


def _holder(lock: Path) -> ServerFile | None:
    if not _is_locked(lock):
        return None
    try:
        raw = json.loads(lock.read_text())
        started_s = float(raw["process_started_s"])
        holder = ServerFile(int(raw["pid"]), "", datetime.fromtimestamp(started_s, UTC), started_s)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return holder if holder.alive else None


def previous_port(home: Path) -> int:
    """The port of the server that died here: clients know it. 0 if none is known."""
    server = read_server(home)
    return (urlsplit(server.url).port or 0) if server is not None else 0


@contextmanager
def serving(home: Path, *, as_server: bool = True, again: bool = False) -> Iterator[None]:
    """Be the server of ``home`` inside the block, or (``as_server=False``) keep others from it for a moment.

    ``again``: as the successor of one that died. Its address stays published, because it will be ours.

    Raises Conflict (caller) if another process is.
    """
    make_home(home)
    try:
        handle = os.open(home / _SERVER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
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
        if not again:
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
    """Whether some process serves ``home`` or is about to, even if it has not yet said where."""
    return _is_locked(home / _SERVER_LOCK) or _is_locked(home / _guardian.LOCK)


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def publish(home: Path, url: str, guarded_by: tuple[int, float] = (0, 0.0)) -> None:
    """Say where this process serves, and who starts it again. Written beside and renamed, so that no reader sees half a
    file."""
    pid, started_s = guarded_by
    content = {**_identity(), "url": url, "guardian_pid": pid, "guardian_started_s": started_s}
    beside = server_path(home).with_suffix(".new")
    try:
        beside.write_text(json.dumps(content))
        beside.replace(server_path(home))
    except OSError as error:
        raise storage_error(error) from error
