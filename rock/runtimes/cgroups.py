"""A control group for a sandbox that has no container engine: memory, processes, CPU. Needs root; else does nothing.

Version 1 (one hierarchy per controller) and version 2 (one for all). The groups are ``rock/<sandbox id>``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rock.wire.models import Limits

_ROOT = Path("/sys/fs/cgroup")
_PARENT = "rock"
_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The group's directories; none where groups cannot be made."""

    directories: tuple[Path, ...]

    @classmethod
    def of(cls, sandbox_id: str) -> Cgroup:
        """The group as it exists."""
        return cls(tuple(path for path in _places(sandbox_id) if path.is_dir()))

    @classmethod
    def create(cls, sandbox_id: str, limits: Limits) -> Cgroup:
        if os.geteuid() != 0:
            return cls(())
        made = []
        for path in _places(sandbox_id):
            try:
                _enable(path.parent)
                path.mkdir(parents=True, exist_ok=True)
                made.append(path)
            except OSError:
                continue  # not mounted, or read-only as inside a container: the process limits must do
        group = cls(tuple(made))
        group._set(limits)
        return group

    def entering(self) -> list[str]:
        """Words to put before a command line so that it runs in the group."""
        if not self.directories:
            return []
        files = [str(path / "cgroup.procs") for path in self.directories]
        # $$ stays the process id through exec, so the command itself and all its children are counted.
        script = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *files, "--"]

    def oom_kills(self) -> int:
        return oom_kills_in(self.directories)

    def remove(self) -> None:
        """The kernel lets a group go a moment after its last process."""
        deadline = time.monotonic() + 2.0
        for path in self.directories:
            while path.is_dir():
                try:
                    path.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.005)

    def _set(self, limits: Limits) -> None:
        quota = int(limits.cpus * _PERIOD_US)
        values = {
            "memory.max": limits.memory_bytes,
            "memory.swap.max": 0,
            "memory.limit_in_bytes": limits.memory_bytes,
            "memory.memsw.limit_in_bytes": limits.memory_bytes,
            "pids.max": limits.pids,
            "cpu.max": f"{quota} {_PERIOD_US}",
            "cpu.cfs_period_us": _PERIOD_US,
            "cpu.cfs_quota_us": quota,
        }
        for path in self.directories:
            for name, value in values.items():
                if (path / name).exists():
                    with contextlib.suppress(OSError):  # swap accounting may be off
                        (path / name).write_text(str(value))


def oom_kills_in(directories: Iterable[Path]) -> int:
    """How often the kernel killed for memory, from the first of these groups that says so; version 1 or 2."""
    for path in directories:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                for line in (path / name).read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
    return 0


def pids_in(directories: Iterable[Path]) -> list[int]:
    """The processes of the first of these groups that has any, as the host numbers them."""
    for path in directories:
        with contextlib.suppress(OSError, ValueError):
            if found := [int(word) for word in (path / "cgroup.procs").read_text().split()]:
                return found
    return []


def docker_groups(container_id: str) -> tuple[Path, ...]:
    """Where Docker puts a container's groups: by the file system's or by systemd's hand, version 1 or 2."""
    tops = (_ROOT, _ROOT / "memory", _ROOT / "cpuacct", _ROOT / "pids")
    return tuple(
        top / place for top in tops for place in (f"docker/{container_id}", f"system.slice/docker-{container_id}.scope")
    )


def _places(sandbox_id: str) -> list[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT / _PARENT / sandbox_id]
    return [_ROOT / controller / _PARENT / sandbox_id for controller in ("memory", "pids", "cpu", "cpuacct")]


def _enable(parent: Path) -> None:
    """Version 2: a controller must be handed down from level to level."""
    parent.mkdir(exist_ok=True)
    for level in (_ROOT, parent):
        control = level / "cgroup.subtree_control"
        if control.exists() and (level == _ROOT or level.parent == _ROOT):
            for controller in ("memory", "pids", "cpu"):
                with contextlib.suppress(OSError):
                    control.write_text(f"+{controller}")
