"""A look at a guest's process from the host: what the kernel says of it. Linux's /proc and control groups.

Only what can be trusted: a process counts as the guest's only if it stands in the sandbox's own process tree or control
group, so that a recycled number, or another machine's, says nothing. Never raises: what cannot be read is unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rock.domain.detection import Look, Seen
from rock.runtimes.shared import INSIDE, PYZ

_GUEST = f"{INSIDE}/{PYZ}".encode()
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CGROUPS = Path("/sys/fs/cgroup")
_SEEN = {"T": Seen.STOPPED, "R": Seen.RUNNABLE, "D": Seen.RUNNABLE, "S": Seen.SLEEPING, "Z": Seen.GONE, "X": Seen.GONE}


def look_at_guest(first_pid: int, cgroup_name: str = "") -> Look:
    """``first_pid``: the sandbox's first process, as the host numbers it; its child is the guest, or it is itself.

    ``cgroup_name``: a word that the path of its control group must hold, or the process is somebody else's.
    """
    groups = _read(f"/proc/{first_pid}/cgroup")
    if not groups or (cgroup_name and cgroup_name not in groups):
        return Look(Seen.UNKNOWN)
    if _frozen(groups):
        return Look(Seen.PAUSED)
    for pid in (first_pid, *_children(first_pid)):
        if _GUEST in _read(f"/proc/{pid}/cmdline").encode().split(b"\0") and not _is_wrapper(pid):
            return _look(pid)
    return Look(Seen.UNKNOWN)


def look_in_groups(groups: Iterable[Path]) -> Look:
    """The same, where the sandbox's control groups are known: quicker than asking an engine, and without its help."""
    for group in groups:
        pids = [int(word) for word in _read(group / "cgroup.procs").split() if word != "0"]
        guests = {pid: parent for pid in pids if (parent := _parent_of_guest(pid)) is not None}
        if not guests:
            continue
        if _frozen(_read(f"/proc/{next(iter(guests))}/cgroup")):
            return Look(Seen.PAUSED)
        return _look(next((pid for pid, parent in guests.items() if parent not in guests), next(iter(guests))))
    return Look(Seen.UNKNOWN)


def _parent_of_guest(pid: int) -> int | None:
    """None if it is no guest. A guest's environment is a fork of it, and looks like it but for its parent."""
    if _GUEST not in _read(f"/proc/{pid}/cmdline").encode().split(b"\0") or _is_wrapper(pid):
        return None
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def _look(pid: int) -> Look:
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 13:
        return Look(Seen.GONE)
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return Look(_SEEN.get(fields[0], Seen.UNKNOWN), cpu_s)  # "t": somebody debugs it, which proves nothing


def _is_wrapper(pid: int) -> bool:
    """bubblewrap's and the init's own command lines carry the guest's, which they were told to run."""
    return os.path.basename(_read(f"/proc/{pid}/cmdline").partition("\0")[0]) in ("bwrap", "docker-init", "tini")


def _children(pid: int) -> list[int]:
    return [int(word) for word in _read(f"/proc/{pid}/task/{pid}/children").split()]


def _frozen(groups: str) -> bool:
    """Version 1 has a freezer of its own, version 2 says so in the group's events."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            return _read(_CGROUPS / "freezer" / path.lstrip("/") / "freezer.state").strip() == "FROZEN"
        if not controllers and "frozen 1" in _read(_CGROUPS / path.lstrip("/") / "cgroup.events"):
            return True
    return False


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
