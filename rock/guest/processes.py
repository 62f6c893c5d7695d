"""Find and kill what a command started, and nothing else. Linux's /proc; no privileges needed."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ROUNDS = 20


def now_ticks() -> int:
    """The present in the unit of a process's start time."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_S)


def is_stopped(pid: int) -> bool:
    """By a signal; not by a debugger."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def children_of(pid: int) -> set[Any]:
    """The children of a process, quickly; empty where the kernel has no such list."""
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return {int(word) for word in file.read().split()}
    except (OSError, ValueError):
        return set()


def kill_started(root_pid: int, since_ticks: int = 0, include_root: bool = True, spared: Any = frozenset()) -> None:
    """SIGKILL the descendants of ``root_pid`` and the members of its session that started at ``since_ticks`` or later.

    ``include_root`` kills ``root_pid`` as well: only while it is known not to be reaped yet. Repeats until nothing is
    left, because a process may fork while the list is read. ``spared``: background jobs so young that their start time
    (in 10 ms) cannot tell them from the command's own processes.
    """
    if include_root:
        _kill(root_pid)
    for _ in range(_ROUNDS):
        found = _started(root_pid, since_ticks, spared)
        for pid in found:
            _kill(pid)
        if not found:
            return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _started(root_pid: int, since_ticks: int, spared: Any) -> set[Any]:
    """Living processes; what an older background process started in the meantime is not looked into."""
    children: dict[Any, Any] = {}
    session = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry, "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        pid, state, parent, sid, start = int(entry), fields[0], int(fields[1]), int(fields[3]), int(fields[19])
        if pid == root_pid or pid in spared or state in (b"Z", b"X") or start < since_ticks:
            continue
        children.setdefault(parent, []).append(pid)
        if sid == root_pid:
            session.append(pid)
    found = set(session)
    queue = [root_pid] + session
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    found.discard(os.getpid())
    return found
