"""What a node is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rock.domain.backoff import BackoffPolicy
from rock.domain.quarantine import QuarantinePolicy
from rock.domain.sizing import SizingPolicy


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
    probe_interval_s: float = 0.5
    """Measured with 50 Docker sandboxes on two cores, both saturated: probing takes the node 2 % of a core, and all
    guests together 2.6 %. Stopped or paused sandboxes were given up after 0.9-1.3 s, dead ones after 0.08-0.22 s."""
    probe_timeout_s: float = 0.4
    """A guest that has not answered for so long is suspect, and its process is looked at."""
    frozen_after_s: float = 0.8
    """Silent this long, and seen to be stopped or paused, is dead."""
    dead_after_s: float = 6.0
    """Silent this long without such proof is dead; ten times as long while the machine is under strain."""
    reconcile_interval_s: float = 3.0
    shared_dir_bytes: int = 16 << 20
    """A sandbox that fills the directory it shares with the host beyond this is ended. The guest needs 0.1 MiB."""
    gateway_host: str = "127.0.0.1"
    """Where the data plane listens: its own address if clients on other machines are to reach it."""
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)
    sizing: SizingPolicy = field(default_factory=SizingPolicy)
    refill_per_s: float = 8.0
    """Starts for warm pools at most, beside ``max_starting``: what a start costs is paid by the sandboxes that work."""
    max_ready_age_s: float = 3600.0
    """One that waited longer in a pool is replaced: connections, caches and clocks inside it grow stale."""
    image_check_s: float = 10.0
    """How often to look whether a waiting image was built anew under its old name."""
    crowded_at: float = 0.85
    """From this share of the machine's memory on, pools keep no more than is configured; see ``full_at``."""
    full_at: float = 0.93
    """From here on they are not refilled at all: what memory is left is for sandboxes that somebody waits for."""
    snapshot_timeout_s: float = 10.0
    """A snapshot takes 0.4 s. Its sandbox may not go on meanwhile, so one that takes long is given up."""
    disk_full_at: float = 0.92
    """From this share of the disk on that images lie on, no snapshot is taken."""
    quarantine: QuarantinePolicy = field(default_factory=QuarantinePolicy)
    quick_death_s: float = 5.0
    """One that dies this soon after it became ready counts against its image; one that lives longer speaks for it."""
