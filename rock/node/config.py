"""What a node is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rock.domain.backoff import BackoffPolicy


@dataclass(frozen=True, slots=True)
class NodeConfig:
    name: str
    run_dir: Path
    """Shared directories are made in it. Short: a unix socket's path must stay below 108 bytes."""
    capacity: int = 64
    """Sandboxes that may exist at once, those being removed included."""
    max_starting: int = 4
    """Measured: 2 to 6 container starts a second per machine, no better with more than 4 to 8 at once."""
    start_timeout_s: float = 60.0
    """From the runtime's start call to the guest's first answer, the environment's import included."""
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 2.0
    dead_after_s: float = 6.0
    """Silent this long, and for ``dead_after_probes`` probes in a row, is dead. Both, because a machine that is itself
    overloaded, or was suspended, misses one probe by much."""
    dead_after_probes: int = 3
    reconcile_interval_s: float = 3.0
    shared_dir_bytes: int = 16 << 20
    """A sandbox that fills the directory it shares with the host beyond this is ended. The guest needs 0.1 MiB."""
    gateway_host: str = "127.0.0.1"
    """Where the data plane listens: its own address if clients on other machines are to reach it."""
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)
    idle_pool_s: float = 900.0
    """A pool that nobody has claimed from this long is drained; the next claim fills it again."""
