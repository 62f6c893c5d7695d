"""What `rock up` was told: for the platform itself, and to tell it again to the process in the background."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rock.cluster.settings import PlatformSettings


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    host: str = "127.0.0.1"
    port: int = 0
    runtime: str = "auto"
    database: str = ""
    """Empty: SQLite in the home."""
    capacity: int = 0
    """0: what the machine can hold."""
    pools: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    """Nodes as processes of this machine; 0: one in the platform's own."""
    ray: str = ""
    """Address of the Ray cluster whose machines become the nodes."""

    def platform(self) -> PlatformSettings:
        from rock.cluster.settings import PlatformSettings

        return PlatformSettings(
            home=self.home,
            runtime=self.runtime,
            database=self.database,
            capacity=self.capacity,
            pools=self.pools,
            nodes=self.nodes,
            ray=self.ray,
        )

    def arguments(self) -> list[str]:
        """The same as arguments of `rock up`; but for the database, whose URL may hold a password."""
        argv = ["--home", str(self.home), "--host", self.host, "--port", str(self.port), "--runtime", self.runtime]
        if self.capacity:
            argv += ["--capacity", str(self.capacity)]
        if self.nodes:
            argv += ["--nodes", str(self.nodes)]
        if self.ray:
            argv += ["--ray", self.ray]
        for name, count in self.pools.items():
            argv += ["--pool", f"{name}={count}"]
        return argv
