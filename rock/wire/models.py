"""Requests and views of the API. Frozen; unknown keys are errors; times are UTC datetimes, durations end in ``_s``."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rock.domain.nodes import NodeStanding
from rock.domain.outcome import LedgerState
from rock.domain.sandbox import SandboxState


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Recovery = Literal["replay", "snapshot", "none"]

SNAPSHOT_PREFIX = "rock-snapshot:"
"""How the images begin that are made of a lease's sandbox, to go on from when it is lost."""

# --- sandboxes -------------------------------------------------------------------------------------------------------


class Limits(Message):
    """What a sandbox may use at most. Memory includes swap: there is none beyond it."""

    cpus: Annotated[float, Field(gt=0, le=256)] = 1.0
    memory_bytes: Annotated[int, Field(ge=16 << 20)] = 512 << 20
    pids: Annotated[int, Field(ge=8)] = 128
    tmpfs_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    open_files: Annotated[int, Field(ge=64)] = 1024
    file_size_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20


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
    read_only: bool = True
    user: str = ""
    """``uid:gid`` inside; empty means an unprivileged user chosen by the runtime."""
    workdir: str = "/tmp"

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

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
    ``probe`` (silent without proof), ``guest_lost``, ``env_dead``, ``slow``, ``disk``, ``start_failed``,
    ``start_timeout``."""
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


class NodeView(Message):
    name: str
    runtime: str
    healthy: bool
    detail: str = ""
    sandboxes: dict[SandboxState, int] = Field(default_factory=dict)
    capacity: int
    cpu_percent: float = 0.0
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    pools: tuple[PoolView, ...] = ()
    claims: int = 0
    failures: int = 0
    started_at: datetime | None = None
    starting: int = 0
    max_starting: int = 0
    step_p50_s: dict[str, float] = Field(default_factory=dict)
    """Median step latency of late, by pool digest, as the guests measured it."""
    pressure: Pressure | None = None
    standing: NodeStanding = NodeStanding.UP
    """What control makes of it. A node that describes itself says nothing here."""
    standing_detail: str = ""
    last_seen_at: datetime | None = None
    address: str = ""
    """Where its data plane listens."""
    quarantined: tuple[str, ...] = ()
    """Pool digests of the images that it refuses."""
    generation: int = 0
    """Counts the connections that control had to make to it; 0 for a node in control's own process."""


class NodeUpdate(Message):
    """``POST /v1/nodes/{name}/{cordon|uncordon|drain}``."""

    reason: str = ""


class PoolSize(Message):
    """How many ready sandboxes a pool keeps; between the bounds demand decides."""

    ready: Annotated[int, Field(ge=0)]
    """While it is in use."""
    minimum: Annotated[int, Field(ge=0)] = 0
    """Even when nobody has claimed one for long."""
    maximum: Annotated[int, Field(ge=0)] = 0
    """However high the demand; 0: eight times ``ready``."""


class PoolView(Message):
    image: str
    env: str
    digest: str
    target: int
    """What is configured; ``level`` is what it keeps now, from demand."""
    level: int = 0
    ready: int
    starting: int
    waiting: int = 0
    """Claims that wait for one."""
    claims: int = 0
    misses: int = 0


# --- leases ----------------------------------------------------------------------------------------------------------


class LeaseRequest(Message):
    """Give ``env`` (a known environment), or ``image`` or a full ``spec``. Without an image, in the spec too, it is the
    runtime's own: the base image under Docker, the host's system under bubblewrap."""

    env: str = ""
    image: str = ""
    spec: SandboxSpec | None = None
    ttl_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """The lease ends when this long passes without a heartbeat."""
    wait_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long to wait for a sandbox before giving up with ``capacity-exceeded``."""
    run_id: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    recovery: Recovery | None = None
    """What happens when the sandbox is lost: null takes the environment's word; a plain sandbox has none. With
    ``replay`` or ``snapshot`` the lease lives on: it is bound to another sandbox under the next epoch."""
    needs_s: Annotated[float, Field(ge=0)] = 0.0
    """How long its holder may hold it at most; 0: no limit. Refused if shorter than the environment's deadlines
    (episode, scoring and clean-up) add up to."""


class RecoverRequest(Message):
    """``POST /v1/leases/{id}/recover``: the holder lost its sandbox and waits for the one that takes its place."""

    epoch: Annotated[int, Field(ge=1)]
    """The epoch the holder speaks for. If the lease is past it already, the answer is the lease as it is now."""
    wait_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    why: str = ""
    snapshot: str | None = None
    """The snapshot its holder can go on from; empty: none, so the other sandbox is to be as new. Null: whichever."""


class SnapshotRequest(Message):
    """``POST /v1/leases/{id}/snapshot``: keep the sandbox's files as they are now. Between two steps, by its holder."""

    epoch: Annotated[int, Field(ge=1)]
    """The one the holder speaks for."""
    number: Annotated[int, Field(ge=1)]
    """Counts the snapshots of a lease. Asked again with the same one, the answer is the same snapshot."""
    step: Annotated[int, Field(ge=0)] = 0
    """How many steps of the episode are in it."""


class SnapshotView(Message):
    name: str
    """Of the image that was made; removed when a later one replaces it, or the lease ends."""
    step: int
    at: datetime
    bytes: int
    """What it takes beside the image that the sandbox was made from, as far as the runtime can say."""
    node: str
    number: int = 0
    took_s: float = 0.0


class RecoveryReport(Message):
    """How a holder got over the loss of its sandbox, in its own measure. ``POST /v1/leases/{id}/recovered``."""

    verdict: Literal["resumed", "diverged"] = "resumed"
    epoch: int
    """The one it speaks for since."""
    cause: str = ""
    """Why the sandbox was lost, as far as the platform knows it."""
    old_sandbox: str
    new_sandbox: str
    detect_s: float = 0.0
    """From the last sign of life of the old sandbox to the node's verdict; 0: the end of a connection said it."""
    rebind_s: float = 0.0
    """From the holder's hearing of it to the connection with the new sandbox."""
    replay_s: float = 0.0
    """From there to the state that was lost."""
    steps: int = 0
    """How many were replayed."""
    from_step: int = 0
    """Where the snapshot stood that the other sandbox was made from; 0: replayed from the start."""

    @property
    def sentence(self) -> str:
        return (
            f"sandbox {self.old_sandbox} → {self.new_sandbox}: {self.verdict} in {self.rebind_s + self.replay_s:.3f} s "
            f"({self.rebind_s:.3f} s to bind, {self.replay_s:.3f} s to {self._way}); {self.cause}"
        )

    @property
    def _way(self) -> str:
        restored = f"restore the snapshot of step {self.from_step} and " if self.from_step else ""
        return f"{restored}replay {self.steps} steps"


class LeaseView(Message):
    id: str
    sandbox_id: str
    epoch: int
    token: str
    """Proof of the lease for the gateway. Only in the answer to its creation; empty elsewhere."""
    endpoint: Endpoint
    ttl_s: float
    created_at: datetime
    run_id: str = ""
    env: str = ""
    image: str = ""
    recovery: Recovery = "none"
    recoveries: int = 0
    """How often it was bound to another sandbox."""
    recovering: bool = False
    """Its sandbox is lost and its replacement is being made."""
    snapshot: str = ""
    """Of which snapshot its present sandbox was made; empty: of its image."""
    latest_snapshot: SnapshotView | None = None
    """What the next one would be made of."""
    snapshot_every: int = 0
    """How many steps its environment wants between two snapshots; 0: it does not say. Only in the answer to the
    lease's creation."""
    judge: str = ""
    """The environment that gives this one's rewards; empty: it gives them itself. Only in the answer to the lease's
    creation."""


# --- one-off work in a sandbox ---------------------------------------------------------------------------------------


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


# --- environments ----------------------------------------------------------------------------------------------------


class EnvView(Message):
    name: str
    version: str
    description: str
    recovery: Recovery
    built: bool
    image: str = ""
    bundle_digest: str = ""
    splits: dict[str, int] = Field(default_factory=dict)
    """Number of tasks per split; empty until built."""
    loosened: tuple[str, ...] = ()
    build_detail: str = ""
    snapshot_every: int = 0
    """Steps between two snapshots, for one that recovers by them."""
    judge: str = ""
    """The environment that judges its submissions, in a sandbox of its own; empty: it gives rewards itself."""
    episode_s: float = 0.0
    """Deadlines the environment declares for a whole episode, its scoring and its clean-up; 0: none."""
    scoring_s: float = 0.0
    cleanup_s: float = 0.0
    objectives: dict[str, float] = Field(default_factory=dict)
    """Within how many seconds 95 of 100 should be done, by what is measured (``open``, ``reset``, ``step``)."""


class TaskList(Message):
    env: str
    split: str
    tasks: tuple[str, ...]


# --- events ----------------------------------------------------------------------------------------------------------


class EventView(Message):
    id: int = 0
    at: datetime
    kind: str
    """``sandbox.failed``, ``sandbox.adopted``, ``lease.expired``, ``node.up``, ``env.built``, ``run.started``…"""
    subject: str
    detail: str = ""
    node: str = ""
    run_id: str = ""


# --- runs, metrics, episodes -----------------------------------------------------------------------------------------

RunStatus = Literal[
    "starting", "warm_start", "evaluating", "training", "completed", "failed", "stopped", "interrupted", "paused"
]
"""``paused``: a rule of its alerts held it back before it trained on something; it waits for a person."""


class RunCreate(Message):
    name: str
    recipe: dict[str, Any]
    total_steps: int = 0
    resumed_from: str = ""


class RunUpdate(Message):
    status: RunStatus | None = None
    detail: str | None = None
    summary: dict[str, Any] | None = None
    """Merged into the run's summary: final numbers such as success rates with their intervals."""


class RunView(Message):
    id: str
    name: str
    status: RunStatus
    detail: str = ""
    recipe: dict[str, Any]
    total_steps: int
    step: int = 0
    created_at: datetime
    updated_at: datetime
    summary: dict[str, Any] = Field(default_factory=dict)


class MetricPoint(Message):
    """The numbers of one training step. Names: ``area/name`` such as ``rollout/success``, ``staleness/mean``."""

    step: int
    at: datetime
    values: dict[str, float]
    """Numbers that are none (NaN, infinite, null) are left out: JSON has no word for them."""

    @field_validator("values", mode="before")
    @classmethod
    def _finite(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None and not (isinstance(v, float) and not isfinite(v))}


class TurnRecord(Message):
    observation: str
    """What the policy saw before it acted: the text added to the context for this turn."""
    response: str
    action: str
    reward: float = 0.0
    tokens: int = 0
    policy_version: int = 0
    mean_logprob: float = 0.0
    generate_s: float = 0.0
    env_s: float = 0.0


class EpisodeRecord(Message):
    """One episode as booked in the ledger. Reporting the same id again replaces the record, unless that one is newer
    (it has ended, or ended later): at-least-once, in any order, is safe."""

    id: str
    group_id: str = ""
    env: str
    task: str
    seed: int
    split: str = "train"
    phase: Literal["warm_start", "train", "eval"] = "train"
    step: int = 0
    policy_version: int = 0
    ledger: LedgerState
    outcome: Literal["completed", "truncated", "void", "cancelled"]
    reason: str = ""
    reward: float | None = None
    success: bool | None = None
    sandbox_id: str = ""
    turns: tuple[TurnRecord, ...] = ()
    turn_count: int = 0
    generated_tokens: int = 0
    sandbox_s: float = 0.0
    recoveries: int = 0
    """How often its sandbox was lost and the episode replayed in another."""
    open_s: float = 0.0
    """How long it waited for its sandbox; 0 where that is not known."""
    reset_s: float = 0.0
    """How long the environment took to begin; 0 where that is not known."""
    started_at: datetime
    ended_at: datetime


class LatencyView(Message):
    """What the ended episodes of a run in one environment spent their time on; quantiles within 5 %."""

    env: str
    what: str
    """``open`` (a sandbox), ``reset``, ``step`` of the environment, ``generate`` an answer."""
    count: int
    p50_s: float
    p95_s: float
    p99_s: float


class EpisodeFilter(Message):
    """Which episodes of a run; what is left empty matches everything."""

    phase: Literal["", "warm_start", "train", "eval"] = ""
    outcome: Literal["", "completed", "truncated", "void", "cancelled"] = ""
    ledger: LedgerState | None = None
    success: bool | None = None
    """False is a failure of the policy; void and cancelled episodes are neither."""
    task: str = ""
    """Part of the task's name, in any case."""
    text: str = ""
    """Words, in any case, each of which occurs in the task, the reason, or the id of the episode or its sandbox."""


class EpisodePage(Message):
    total: int
    episodes: tuple[EpisodeRecord, ...]
    """Without turns; fetch one episode to read it."""


class LedgerView(Message):
    """Conservation: ``dispatched``, the number of episodes there are, equals the sum of all accounts, ``in_flight``
    included."""

    run_id: str
    dispatched: int
    accounts: dict[LedgerState, int]
    tokens: dict[LedgerState, int]
    sandbox_s: dict[LedgerState, float]
    conserved: bool = True
    """Whether dispatched = sum of the accounts, checked when this was answered."""


# --- quarantine, keys ------------------------------------------------------------------------------------------------


class QuarantineView(Message):
    """An image or a task that fails again and again, and is refused instead of retried for ever."""

    kind: Literal["image", "task"]
    subject: str
    """The pool's digest, or ``environment/task``."""
    name: str
    """For people: the image's tag, the environment and the task."""
    reason: str
    failures: int
    since: datetime
    node: str = ""
    """Where it failed; several are separated by commas. Empty for a task."""
    retry_at: datetime | None = None
    """When it is tried once more; what lies in the past is on trial."""


class TaskFailure(Message):
    """``POST /v1/quarantine/tasks``: the environment itself failed at this task, through no fault of the policy."""

    env: Annotated[str, Field(min_length=1, max_length=100)]
    task: Annotated[str, Field(min_length=1, max_length=150)]
    reason: Annotated[str, Field(max_length=2000)]
    elapsed_s: Annotated[float, Field(ge=0)] = 0.0
    """How long ago the call began that failed: failures side by side count as one."""


Scope = Literal["read", "run", "admin"]


class KeyCreate(Message):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    scope: Scope = "run"
    """``read`` looks, ``run`` also leases and reports runs, ``admin`` does everything."""
    max_leases: Annotated[int, Field(ge=0)] = 0
    """Leases it may hold at once; 0: no limit of its own."""
    max_requests: Annotated[int, Field(ge=0)] = 0
    """Requests it may have under way at once; 0: no limit of its own."""


class KeyView(Message):
    id: str
    name: str
    scope: Scope
    max_leases: int
    max_requests: int
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    secret: str = ""
    """Only in the answer to its creation; what is stored is its hash."""


class Health(Message):
    status: Literal["ok", "degraded"]
    instance: str
    version: str
    uptime_s: float
    pid: int
    runtime: str
    database: str
    """Kind of database, never its credentials."""
    detail: str = ""


NodeView.model_rebuild()
