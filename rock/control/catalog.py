"""What control needs to know of environments. ``cluster/`` provides it from the bundles on disk; tests from a dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rock.wire.models import EnvView, PoolSize, SandboxSpec


class Catalog(Protocol):
    """Every method may touch the disk and is called in a thread. Raises NotFound, ImageNotFound (not yet built)."""

    def names(self) -> Sequence[str]: ...

    def view(self, name: str) -> EnvView: ...

    def tasks(self, name: str, split: str) -> Sequence[str]: ...

    def spec(self, name: str) -> SandboxSpec: ...

    def task_spec(self, name: str, task: str) -> SandboxSpec | None:
        """Of a task that is played in an image of its own; None if it is played in the environment's. Asked where
        ``view`` says that there are such tasks."""
        ...

    def pool_size(self, name: str) -> PoolSize:
        """How many ready sandboxes to keep while the environment is in use."""
        ...
