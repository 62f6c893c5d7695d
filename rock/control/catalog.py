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


def images_of(catalog: Catalog, name: str, tasks: Sequence[str]) -> list[str]:
    """Those that sandboxes of these tasks want, the environment's and its judge's, where they have images of their own.
    Touches the disk. Raises NotFound."""
    view = catalog.view(name)
    judges = [catalog.view(view.judge)] if view.judge else []
    envs = [one.name for one in (view, *judges) if one.task_images]
    specs = (catalog.task_spec(env, task) for task in tasks for env in envs)
    return list(dict.fromkeys(spec.image for spec in specs if spec is not None))
