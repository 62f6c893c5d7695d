"""What a platform is told when it starts, and what its state directory keeps from one start to the next."""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rock.domain.backoff import BackoffPolicy
from rock.domain.errors import StorageError

# A unix socket's path holds at most 107 bytes; our longest part is /NODE/sb-0123456789/guest.sock.
_MAX_SOCKET_PATH_BYTES = 107
MAX_NODE_NAME_BYTES = 14
_SOCKET_PART_BYTES = 1 + MAX_NODE_NAME_BYTES + len("/sb-0123456789/guest.sock")
# What one sandbox is reckoned to need when the capacity is not given: an idle Python container takes 14 MiB, one with
# an environment loaded 80 to 100.
_BYTES_PER_SANDBOX = 192 << 20
_INSTANCE = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class PlatformSettings:
    home: Path
    runtime: str = "auto"
    """``docker``, ``bubblewrap``, ``fake``, or ``auto``: the first of Docker and bubblewrap that can be used here."""
    database: str = ""
    """URL or path; empty means SQLite in the home directory."""
    capacity: int = 0
    """Sandboxes at once; 0 reckons it from this machine's memory."""
    pools: Mapping[str, int] = field(default_factory=dict)
    """Environments to keep warm from the start, and how many ready sandboxes each."""
    node_name: str = "local"
    nodes: int = 0
    """Nodes as processes of this machine; 0: one node in this process."""
    ray: str = ""
    """Address of a Ray cluster, each of whose machines becomes a node."""
    alone_s: float = 50.0
    """A node that is a process of its own ends itself, with its sandboxes, when control was away this long."""
    max_starting: int = 4
    start_timeout_s: float = 60.0
    probe_interval_s: float = 0.5
    probe_timeout_s: float = 0.4
    dead_after_s: float = 6.0
    reconcile_interval_s: float = 3.0
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


def default_capacity() -> int:
    return max(8, min(256, int(psutil.virtual_memory().total) // 2 // _BYTES_PER_SANDBOX))


def instance_of(home: Path) -> str:
    """The random id that labels everything this platform starts; made once per home. Raises StorageError."""
    path = home / "instance"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if path.exists() and _INSTANCE.fullmatch(instance := path.read_text().strip()):
            return instance
        instance = secrets.token_hex(5)
        path.write_text(instance + "\n")
    except OSError as error:
        raise StorageError(
            f"the state directory {home} cannot be used: {error.strerror}",
            hint="Free some space, give this user write access, or name another with ROCK_HOME.",
            cause=str(error),
        ) from error
    return instance


def run_dir_of(home: Path, instance: str) -> Path:
    """Where the sockets are: in the home or, when that path is too long for a socket, in a short private directory."""
    path = home / "run"
    if len(os.fsencode(path)) + _SOCKET_PART_BYTES <= _MAX_SOCKET_PATH_BYTES:
        return path
    short = Path(tempfile.gettempdir()) / f"rock-{instance}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StorageError(f"{short} belongs to somebody else", hint="Use a shorter ROCK_HOME.")
    return short
