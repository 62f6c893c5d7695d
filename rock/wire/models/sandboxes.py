"""What a sandbox is, how it is seen, what was known when it failed, and one-off work in it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rock.domain.egress import MAX_RULES, parse_rule
from rock.domain.sandbox import SandboxState
from rock.wire.models.message import Message

SNAPSHOT_PREFIX = "rock-snapshot:"
"""How the images begin that are made of a lease's sandbox, to go on from when it is lost."""


class Limits(Message):
    """What a sandbox may use at most. Memory includes swap: there is none beyond it."""

    cpus: Annotated[float, Field(gt=0, le=256)] = 1.0
    memory_bytes: Annotated[int, Field(ge=16 << 20)] = 512 << 20
    pids: Annotated[int, Field(ge=8)] = 128
    tmpfs_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    open_files: Annotated[int, Field(ge=64)] = 1024
    file_size_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    disk_bytes: Annotated[int, Field(ge=1 << 20)] = 4 << 30
    """What it may have on the disk where its root is writable. One that has more is ended (``disk_quota``)."""


class SandboxSpec(Message):
    """Everything that decides what a sandbox is. Two equal specs are interchangeable, so a spec is a pool's key."""

    image: str
    """Docker tag, or under bubblewrap the name of a bundle or ``host``. Empty in a request: the runtime's default."""
    env: str = ""
    """Environment hosted by the guest, as the environment's name; empty for a plain sandbox."""
    entry: str = ""
    """``module:Class`` of the environment, importable inside the sandbox."""
    python_path: tuple[str, ...] = ()
    """Directories inside the sandbox put on the env process's module path."""
    environ: dict[str, str] = Field(default_factory=dict)
    limits: Limits = Limits()
    network: Literal["none", "bridge"] = "none"
    egress: Annotated[tuple[str, ...], Field(max_length=MAX_RULES)] = ()
    """Hosts that its programs reach by HTTP and HTTPS, through a proxy of the node: ``pypi.org``, ``*.example.org``,
    ``host:8443``. It still has no network of its own. :mod:`rock.domain.egress` says what matches."""
    read_only: bool = True
    user: str = ""
    """``uid:gid`` inside; empty means an unprivileged user chosen by the runtime."""
    workdir: str = "/tmp"

    @field_validator("egress")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """In one way of writing and one order, so that lists that mean the same make one pool."""
        return tuple(sorted({str(parse_rule(text)) for text in value}))

    @model_validator(mode="after")
    def _egress_without_network(self) -> Self:
        if self.egress and self.network != "none":
            raise ValueError(
                f"egress {', '.join(self.egress)} with network {self.network!r}: with a network of its own a sandbox "
                "reaches everything, so leave out one of the two"
            )
        return self

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def file_size_bytes(self) -> int:
        """How large one file may become: no single one takes more than there is of the disk."""
        limits = self.limits
        return limits.file_size_bytes if self.read_only else min(limits.file_size_bytes, limits.disk_bytes)

    @property
    def from_snapshot(self) -> bool:
        """Whether it is one lease's alone: started from what was kept of its sandbox."""
        return self.image.startswith(SNAPSHOT_PREFIX)

    @property
    def loosened(self) -> tuple[str, ...]:
        """The settings that are less safe than the default, for people to see."""
        out = []
        if self.network != "none":
            out.append(f"network={self.network}")
        if self.egress:
            out.append(f"egress={','.join(self.egress)}")
        if not self.read_only:
            out.append("writable root")
        if self.user.split(":")[0] in {"0", "root"}:
            out.append("user=root")
        return tuple(out)


class Endpoint(Message):
    """Where a sandbox's guest is reached. On the node's own machine the socket is quicker; the gateway always works."""

    node: str
    socket_path: str = ""
    gateway_host: str = ""
    gateway_port: int = 0


class ProbeResult(Message):
    """One look at a guest by the node's own socket."""

    at: datetime
    ok: bool
    latency_s: float
    """Seconds to the answer, or until the probe gave up."""
    detail: str = ""


class Pressure(Message):
    """How busy the machine was. Shares are 0 to 1."""

    cpu: float = 0.0
    memory: float = 0.0
    load_per_cpu: float = 0.0
    disk: float = 0.0


class Evidence(Message):
    """What was known when a sandbox failed. Kept with it for good."""

    cause: str
    """Short and stable, for counting: ``exited``, ``oom``, ``removed``, ``paused``, ``frozen`` (stopped by a signal),
    ``probe`` (silent without proof), ``guest_lost``, ``env_dead``, ``slow``, ``disk`` (the directory it shares with
    the host), ``disk_quota`` (its own files), ``start_failed``, ``start_timeout``."""
    detail: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    """The kernel killed something in it for its memory, the main process or a child."""
    last_output: tuple[str, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    """The last ones, oldest first."""
    pressure: Pressure | None = None
    detected_after_s: float | None = None
    """Seconds from the last sign of life to the verdict."""


class SandboxView(Message):
    id: str
    state: SandboxState
    node: str
    runtime: str
    spec: SandboxSpec
    lease_id: str = ""
    run_id: str = ""
    created_at: datetime
    changed_at: datetime
    start_s: float | None = None
    """Seconds from the runtime's start call to the guest's first answer."""
    handle: str = ""
    """The runtime's own name of it: a container id, a process id."""
    evidence: Evidence | None = None
    meaning: str = ""
    """What its state means, in a sentence."""
    oom_kills: int = 0
    """How often the kernel killed something in it for its memory. A child's death alone is no failure."""
    env_deaths: int = 0
    """How often its environment's process died and its guest dealt with that."""
    slow: str = ""
    """In what way it is slower than others of its kind; empty if it is not."""


class SandboxStats(Message):
    """What a living sandbox takes, as its node counts it from outside. ``GET /v1/sandboxes/{id}/stats``."""

    at: datetime
    cpu_s: float
    """Processor seconds since it began."""
    cpu_share: float
    """Processors in use on average since the sample before, a second ago or more; at first since its start."""
    memory_bytes: int
    """With what it has in ``/tmp``, without the files' pages that the kernel would give up for others."""
    memory_limit_bytes: int
    pids: int
    """Processes and threads; without control groups processes only."""
    disk_bytes: int | None = None
    """Its files on the disk, as of the last look a few seconds ago; null for one that can write nothing there."""
    disk_limit_bytes: int | None = None
    egress_bytes: int = 0
    """Through its proxy, both ways, since its node was started."""
    egress_refused: int = 0
    """Requests for hosts that its list does not name. Events tell which."""


class RestartRequest(Message):
    """``POST /v1/sandboxes/{id}/restart``: end it, and let whoever holds it go on in another."""

    force: bool = False
    """End it even if the lease on it does not recover: that is lost then, with the reason."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """For the events and the holder."""
    wait_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    """How long to wait for the sandbox that takes its place, to name it in the answer."""


class RestartView(Message):
    sandbox_id: str
    """The one that was ended."""
    outcome: Literal["moved", "lost", "ended"]
    """``moved``: its lease goes on in another sandbox; ``lost``: its lease is lost, as forced or because no other
    sandbox was to be had; ``ended``: nobody held it, and its pool starts another."""
    node: str
    lease_id: str = ""
    replacement: str = ""
    """The sandbox that its lease is on now; empty while that is still looked for, and where there was no lease."""


class ExecRequest(Message):
    argv: Annotated[tuple[str, ...], Field(min_length=1)]
    cwd: str = ""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    max_output_bytes: Annotated[int, Field(ge=1)] = 1 << 20


class ExecResult(Message):
    exit_code: int
    stdout: str
    stderr: str
    truncated: bool = False
    timed_out: bool = False
    duration_s: float = 0.0


class LogView(Message):
    lines: tuple[str, ...]
