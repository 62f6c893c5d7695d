"""What control needs to know of environments. ``cluster/`` provides it from the bundles on disk; tests from a dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rock.domain.errors import NotFound
from rock.wire.models import EnvView, SandboxSpec


class Catalog(Protocol):
    """Every method may touch the disk and is called in a thread. Raises NotFound, ImageNotFound (not yet built)."""

    def names(self) -> Sequence[str]: ...

    def view(self, name: str) -> EnvView: ...

    def tasks(self, name: str, split: str) -> Sequence[str]: ...

    def spec(self, name: str) -> SandboxSpec: ...

    def pool_size(self, name: str) -> int:
        """How many ready sandboxes to keep while the environment is in use."""
        ...


class NoEnvironments:
    """A platform for plain sandboxes only."""

    def names(self) -> Sequence[str]:
        return ()

    def view(self, name: str) -> EnvView:
        raise unknown_env(name, ())

    def tasks(self, name: str, split: str) -> Sequence[str]:
        raise unknown_env(name, ())

    def spec(self, name: str) -> SandboxSpec:
        raise unknown_env(name, ())

    def pool_size(self, name: str) -> int:
        raise unknown_env(name, ())


def unknown_env(name: str, known: Sequence[str]) -> NotFound:
    return NotFound(f"no environment {name!r}", hint=f"Known: {', '.join(sorted(known)) or 'none'}.")
