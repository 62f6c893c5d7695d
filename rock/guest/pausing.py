"""Stopping everything in the sandbox but the guest, and letting it go on; and what the sandbox uses.

A paused sandbox takes no processor time and answers probes, so nobody takes it for dead; its memory stays taken.
In a sandbox that is everything in the process namespace; on a bare host (tests) what the guest has started.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_ROUNDS = 200
_ROUND_S = 0.001
_BORN_WITH_US_S = 60
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SEEN_DISKS = ("/", "/tmp", "/dev/shm")


class _Process:
    __slots__ = ("began", "parent", "pid", "rss_bytes", "state", "ticks")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.state, self.parent = fields[0], int(fields[1])
        self.ticks = sum(int(field) for field in fields[11:15])  # its own, and of children it has reaped
        self.began = int(fields[19])
        self.rss_bytes = int(fields[21]) * _PAGE_BYTES


def _processes() -> list[Any]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry, "rb") as file:
                    found.append(_Process(int(entry), file.read().rpartition(b")")[2].split()))
            except (OSError, IndexError, ValueError):
                continue  # it ended meanwhile
    return found


def _ours(processes: list[Any]) -> list[Any]:
    """All but the guest and the namespace's first process; on a bare host the guest's descendants."""
    me = os.getpid()
    if _alone(processes, me):
        return [one for one in processes if one.pid not in (1, me)]
    children: dict[Any, Any] = {}
    for one in processes:
        children.setdefault(one.parent, []).append(one)
    found, queue = [], [me]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += [one.pid for one in below]
    return found


def _alone(processes: list[Any], me: int) -> bool:
    """Whether the process namespace is ours. An orphan on a bare host has process 1 as its parent too, but that one is
    as old as the machine."""
    began = {one.pid: one.began for one in processes if one.pid in (1, me)}
    if me == 1:
        return True
    return os.getppid() == 1 and began.get(me, 0) - began.get(1, 0) < _BORN_WITH_US_S * _TICKS_PER_S


def stop_all() -> list[Any]:
    """Stop every process but ours; returns their numbers. Repeats, because a process may fork while the list is read;
    returns when none runs, at the latest after a fifth of a second.

    What was stopped before by somebody else is left out: going on is not ours to give.
    """
    stopped: list[Any] = []
    for _ in range(_ROUNDS):
        running = [one for one in _ours(_processes()) if one.state not in (b"T", b"t", b"Z", b"X")]
        if not running:
            break
        for one in running:
            if one.pid not in stopped:
                try:
                    os.kill(one.pid, signal.SIGSTOP)
                    stopped.append(one.pid)
                except (ProcessLookupError, PermissionError):
                    continue
        time.sleep(_ROUND_S)  # a process that runs on another core stops a moment later
    return stopped


def go_on(pids: list[Any]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            continue


def usage() -> dict[str, Any]:
    """Processor seconds since the start (of those that live, and of those that were reaped by them), memory, disks."""
    processes = _processes()
    ours = _ours(processes)
    everything = ours + [one for one in processes if one.pid == os.getpid()]
    disks = {}
    for path in _SEEN_DISKS:
        try:
            info = os.statvfs(path)
        except OSError:
            continue
        total = info.f_blocks * info.f_frsize
        disks[path] = {"total_bytes": total, "used_bytes": total - info.f_bfree * info.f_frsize}
    return {
        "processes": len(ours),
        "cpu_s": round(sum(one.ticks for one in everything) / _TICKS_PER_S, 2),
        "rss_bytes": sum(one.rss_bytes for one in everything),
        "disks": disks,
        "t": time.monotonic(),
    }
