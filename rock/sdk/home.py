"""Where a platform keeps its state, and how a client finds the one that runs.

The address a client uses is, in this order: what the caller passed, ``ROCK_URL``, the address in ``server.json`` of
``$ROCK_HOME`` if the process that wrote it, or the guardian that starts it again, still lives, and the default, but
this only for who named no state directory: whoever did means the platform of that one, never another's. A file left
behind by a dead server, or by one whose process id now belongs to somebody else, is never believed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from rock.domain.errors import PlatformUnavailable

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7625
DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"

# A process start time is computed from the machine's boot time, which moves by up to a second when the clock is set.
_START_SLACK_S = 2.0


def rock_home(home: str | Path | None = None) -> Path:
    """The state directory: ``home``, else ``$ROCK_HOME``, else ``~/.rock``. It need not exist."""
    return Path(home or os.environ.get("ROCK_HOME") or "~/.rock").expanduser().absolute()


def is_default(home: Path) -> bool:
    """Whether it is the state directory of a user who named none. Only a platform of that one has the default address
    as its natural place; what answers there need have nothing to do with another directory."""
    return home == Path("~/.rock").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class ServerFile:
    """Content of ``server.json``: which process serves this home, and where."""

    pid: int
    url: str
    started_at: datetime
    process_started_s: float = 0.0
    """Start of the process as seconds since the epoch: tells it from a later one that got the same pid."""
    guardian_pid: int = 0
    """The process that starts this one again when it dies; 0 for none."""
    guardian_started_s: float = 0.0
    gave_up: str = ""
    """Why the guardian no longer does."""

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return runs(
            self.pid, self.process_started_s or self.started_at.timestamp(), exactly=bool(self.process_started_s)
        )

    @property
    def guarded(self) -> bool:
        """Whether its guardian runs: then it is back in a moment at the same address, should it be dead now."""
        return bool(self.guardian_pid) and runs(self.guardian_pid, self.guardian_started_s)


def runs(pid: int, started_s: float, *, exactly: bool = True) -> bool:
    """Whether the process of that id and start time runs; not ``exactly``: one that started no later."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        seen_s = process.create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    late_s = seen_s - started_s
    return bool((abs(late_s) if exactly else late_s) <= _START_SLACK_S)


def server_path(home: Path) -> Path:
    return home / "server.json"


def read_server(home: Path) -> ServerFile | None:
    """What ``server.json`` says, whether or not it still holds (see :attr:`ServerFile.alive`); None if there is none.

    A file that cannot be read or understood counts as none: it must never block a start.
    """
    try:
        raw = json.loads(server_path(home).read_text())
        return ServerFile(
            pid=int(raw["pid"]),
            url=str(raw["url"]),
            started_at=datetime.fromisoformat(raw["started_at"]),
            process_started_s=float(raw.get("process_started_s") or 0.0),
            guardian_pid=int(raw.get("guardian_pid") or 0),
            guardian_started_s=float(raw.get("guardian_started_s") or 0.0),
            gave_up=str(raw.get("gave_up") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def resolve_url(url: str | None = None, home: Path | None = None) -> str:
    """The address to talk to, without a trailing slash. See the module's docstring for the order.

    Raises PlatformUnavailable where a state directory is named and no platform runs from it.
    """
    chosen = url or os.environ.get("ROCK_URL")
    if chosen:
        return chosen.rstrip("/")
    directory = rock_home(home)
    server = read_server(directory)
    if server is not None and (server.alive or server.guarded):
        return server.url.rstrip("/")
    if is_default(directory):
        return DEFAULT_URL
    raise PlatformUnavailable(
        f"No platform runs from {directory}.",
        hint="Start it with `rock up -d`, or name another by its address or ROCK_URL.",
    )


def comes_back(url: str) -> bool:
    """Whether a guardian on this machine sees to it that a platform answers at ``url``."""
    server = read_server(rock_home())
    return server is not None and server.url.rstrip("/") == url and server.guarded
