"""What a runtime is: the one thing that knows how to make an isolated process tree, and nothing about why.

Invariants every runtime keeps: what it starts carries the instance's and the sandbox's id, so that a later process can
find it again (`list_owned`); `stop` is idempotent and returns only when nothing is left; no call blocks the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rock.domain.detection import Look
from rock.runtimes.usage import Usage
from rock.wire.models import SandboxSpec


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether the runtime can be used here; if not, why, and the command that mends it."""

    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the runtime sees of one sandbox."""

    sandbox_id: str
    handle: str
    running: bool
    paused: bool = False
    exit_code: int | None = None
    oom_killed: bool = False
    spec_digest: str = ""
    oom_kills: int = 0
    """How often the kernel killed something in it for its memory, as far as can be read; a child's death counts too."""
    node: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """A hint that something happened; the reconcile loop would find it too, only later."""

    sandbox_id: str
    kind: str  # "died", "oom"
    exit_code: int | None = None


class Runtime(Protocol):
    name: str
    default_image: str
    """What a plain sandbox runs when nobody says."""

    async def check(self) -> Availability: ...

    async def ensure_image(self, image: str) -> str:
        """What the image's name stands for now: changes when it is built anew under the same name; empty where a name
        never changes its meaning. Raises ImageNotFound (with what to do) unless sandboxes of it can be started now."""
        ...

    async def start(self, sandbox_id: str, spec: SandboxSpec, shared_dir: Path) -> str:
        """Start the guest in a new sandbox; returns the handle as soon as the process exists.

        ``shared_dir`` on the host is the one directory that both sides see (inside: ``/run/rock``); it holds
        ``guest.pyz`` and the guest makes ``guest.sock`` there.
        Raises ImageNotFound, RuntimeUnavailable, InvalidRequest.
        """
        ...

    async def stop(self, handle: str) -> None:
        """Kill and remove, with everything it started. No error if it is gone already."""
        ...

    async def inspect(self, handle: str) -> Observed | None:
        """None when nothing of it is left."""
        ...

    async def look(self, handle: str) -> Look:
        """At the guest's process, when it does not answer; ``Seen.UNKNOWN`` where nobody can. Raises like inspect."""
        ...

    async def list_owned(self) -> Sequence[Observed]:
        """Every sandbox of this instance that exists, whoever started it."""
        ...

    async def usage(self, handle: str) -> Usage | None:
        """What it takes at this moment; None when it is gone, or nobody can tell. Cheap, and raises like inspect."""
        ...

    async def written(self, handle: str, enough: int) -> int | None:
        """Bytes on the disk that it has written and not removed, counted to a little beyond ``enough``; None for one
        that can write nothing there. Raises like inspect."""
        ...

    async def logs(self, handle: str, lines: int) -> Sequence[str]: ...

    async def snapshot(self, handle: str, name: str, lease_id: str) -> int:
        """Keep the sandbox's files as image ``name``; the bytes that takes. It runs on, and is never paused for it.

        Raises InvalidRequest (this runtime, or a sandbox with a read-only root, has nothing to keep), SandboxLost,
        StorageError, RuntimeUnavailable.
        """
        ...

    async def remove_snapshot(self, name: str) -> None:
        """No error if it is gone already. Raises Conflict while a sandbox that was made of it exists."""
        ...

    async def snapshots(self) -> Sequence[str]:
        """The names of all of this instance, whoever made them."""
        ...

    async def disk_used(self) -> float:
        """The share of the disk in use that snapshots would lie on, 0 to 1; 0 where nobody can tell."""
        ...

    def watch(self) -> AsyncIterator[RuntimeEvent]:
        """Events until the iterator is closed. Reconnects by itself; may miss events, and the caller must not mind."""
        ...

    async def close(self) -> None: ...
