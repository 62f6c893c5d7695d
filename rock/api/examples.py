"""One example of every message, for the OpenAPI document: built from the models, so that none can be out of date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rock.domain.nodes import NodeStanding
from rock.domain.outcome import LedgerState
from rock.domain.sandbox import MEANING, SandboxState
from rock.wire.models import (
    Endpoint,
    EnvView,
    EpisodePage,
    EpisodeRecord,
    EventView,
    Evidence,
    ExecRequest,
    ExecResult,
    Health,
    KeyCreate,
    KeyView,
    LatencyView,
    LeaseRequest,
    LeaseView,
    LedgerView,
    LogView,
    Message,
    MetricPoint,
    NodeUpdate,
    NodeView,
    PoolView,
    PrefetchRequest,
    PrefetchView,
    Pressure,
    ProbeResult,
    QuarantineView,
    RecoverRequest,
    RecoveryReport,
    RestartRequest,
    RestartView,
    RunCreate,
    RunUpdate,
    RunView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
    SnapshotRequest,
    SnapshotView,
    TaskFailure,
    TaskList,
    TurnRecord,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmCoupling, RhythmHead

AT = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
LATER = AT + timedelta(seconds=42)
RUN, EPISODE, LEASE, SANDBOX = "run-1f2e3d4c5b", "ep-0a1b2c3d4e", "ls-0123456789ab", "sb-0123456789"
TASK = "train/pick_and_place_simple-Mug-None-Shelf-7/trial_0"
SPEC = SandboxSpec(
    image="rock-env-alfworld:9f1c2d3e4a5b",
    env="alfworld",
    entry="envs.alfworld.env:AlfworldEnv",
    python_path=("/opt/rock/env/src", "/opt/rock/env/site"),
)
PRESSURE = Pressure(cpu=0.93, memory=0.61, load_per_cpu=2.4, disk=0.4)
TURN = TurnRecord(
    observation="You are in the middle of a room. Your task is to: put a mug on the shelf.",
    response="<think>A mug is often on the desk.</think><action>go to desk 1</action>",
    action="go to desk 1",
    tokens=23,
    policy_version=118,
    mean_logprob=-0.41,
    generate_s=0.62,
    env_s=0.03,
)
EPISODE_RECORD = EpisodeRecord(
    id=EPISODE,
    group_id="gr-12",
    env="alfworld",
    task=TASK,
    seed=7,
    step=118,
    policy_version=118,
    ledger=LedgerState.TRAINED,
    outcome="completed",
    reward=1.0,
    success=True,
    sandbox_id=SANDBOX,
    turns=(TURN,),
    turn_count=1,
    generated_tokens=23,
    sandbox_s=42.0,
    started_at=AT,
    ended_at=LATER,
)
RHYTHM = EpisodeRhythm(
    episode_id=EPISODE,
    step=118,
    task=TASK,
    success=True,
    strategy="coupled",
    coupling=RhythmCoupling(
        tokens=3, entropy=2.1, entropy_tokens=3, peaks=1, peak_entropy=1.2, anchors=1, followed=1, expected=0.7
    ),
    tokens=("> ", "go to", " desk", " 1"),
    own=(1, 2, 3),
    waad=(6.2, 2.1, 1.9),
    fai=(0.021, 0.034, 0.0),
    change=(4.1, 0.2, 0.0),
    gamma=(1.2, 1.3, 1.0),
    advantage=(1.04, 1.13, 0.87),
    entropy=(1.2, 0.6, 0.3),
    anchor=(False, True, False),
    preplan=(True, False, False),
    heads=(RhythmHead(layer=1, head=0, span=4.2, kind="local"), RhythmHead(layer=1, head=1, span=61.0, kind="global")),
)
KEY = KeyView(
    id="key-0a1b2c3d4e", name="trainer", scope="run", max_leases=32, max_requests=0, created_at=AT, last_used_at=LATER
)
NODE = NodeView(
    name="local",
    runtime="docker",
    healthy=True,
    sandboxes={SandboxState.READY: 8, SandboxState.LEASED: 24},
    capacity=64,
    cpu_percent=71.0,
    memory_used_bytes=11 << 30,
    memory_total_bytes=24 << 30,
    pools=(PoolView(image=SPEC.image, env="alfworld", digest=SPEC.digest, target=8, ready=8, starting=0, claims=2210),),
    claims=2210,
    failures=3,
    started_at=AT,
    max_starting=4,
    step_p50_s={SPEC.digest: 0.031},
    pressure=PRESSURE,
    standing=NodeStanding.UP,
    last_seen_at=LATER,
    address="10.0.0.5:40123",
)
LEDGER = LedgerView(
    run_id=RUN,
    dispatched=1280,
    accounts=dict.fromkeys(LedgerState, 0)
    | {LedgerState.TRAINED: 1184, LedgerState.FILTERED: 80, LedgerState.VOID: 6, LedgerState.IN_FLIGHT: 10},
    tokens=dict.fromkeys(LedgerState, 0) | {LedgerState.TRAINED: 812_440},
    sandbox_s=dict.fromkeys(LedgerState, 0.0) | {LedgerState.TRAINED: 48_211.5},
)

_ALL: tuple[Message, ...] = (
    EnvView(
        name="alfworld",
        version="1",
        description="Household tasks in text.",
        recovery="replay",
        built=True,
        image=SPEC.image,
        bundle_digest="9f1c2d3e4a5b",
        splits={"train": 48, "eval": 12},
        episode_s=600,
        scoring_s=10,
        cleanup_s=5,
        objectives={"open": 1.0, "reset": 5.0, "step": 1.0},
    ),
    EPISODE_RECORD,
    EpisodePage(total=1280, episodes=(EPISODE_RECORD.model_copy(update={"turns": ()}),)),
    EventView(id=4711, at=LATER, kind="sandbox.failed", subject=SANDBOX, detail="oom", node="local", run_id=RUN),
    ExecRequest(argv=("python3", "-c", "print(6 * 7)"), timeout_s=10),
    ExecResult(exit_code=0, stdout="42\n", stderr="", duration_s=0.021),
    Health(
        status="ok",
        instance="0a1b2c3d4e",
        version="0.1.0",
        uptime_s=86_400,
        pid=4242,
        runtime="docker",
        database="SQLite",
    ),
    KeyCreate(name="trainer", scope="run", max_leases=32),
    KEY,
    LeaseRequest(env="alfworld", run_id=RUN, needs_s=900, labels={"by": "train"}),
    LeaseView(
        id=LEASE,
        sandbox_id=SANDBOX,
        epoch=1,
        token="shown once, to whoever took the lease",
        endpoint=Endpoint(node="local", socket_path=f"/home/me/.rock/run/{SANDBOX}/guest.sock", gateway_port=40123),
        ttl_s=60,
        created_at=AT,
        run_id=RUN,
        env="alfworld",
        image=SPEC.image,
        recovery="replay",
    ),
    LEDGER,
    LatencyView(env="alfworld", what="step", count=41_200, p50_s=0.0031, p95_s=0.0079, p99_s=0.021),
    LogView(lines=("guest ready", "env alfworld loaded in 1.2 s")),
    MetricPoint(step=118, at=LATER, values={"rollout/success": 0.71, "staleness/mean": 0.4}),
    NodeUpdate(reason="its disk is being replaced"),
    NODE,
    QuarantineView(
        kind="task",
        subject=f"alfworld/{TASK}",
        name=f"alfworld, task {TASK}",
        reason="failed 3 times within an hour: KeyError: 'mug'",
        failures=3,
        since=LATER,
    ),
    RecoverRequest(epoch=1, wait_s=30, why="the connection ended"),
    RecoveryReport(epoch=2, cause="oom", old_sandbox=SANDBOX, new_sandbox="sb-9876543210"),
    RestartRequest(reason="its disk is slow", wait_s=10),
    RestartView(sandbox_id=SANDBOX, outcome="moved", node="local", lease_id=LEASE, replacement="sb-9876543210"),
    RHYTHM,
    RHYTHM.view(),
    RHYTHM.coupling,
    RHYTHM.heads[0],
    RunCreate(name="alfworld-tiny", recipe={"rollout": {"alpha": 1}}, total_steps=200),
    RunUpdate(status="training", summary={"eval/success": 0.71}),
    RunView(
        id=RUN,
        name="alfworld-tiny",
        status="training",
        recipe={"rollout": {"alpha": 1}},
        total_steps=200,
        step=118,
        created_at=AT,
        updated_at=LATER,
    ),
    SandboxStats(
        at=LATER,
        cpu_s=12.4,
        cpu_share=0.31,
        memory_bytes=96 << 20,
        memory_limit_bytes=512 << 20,
        pids=7,
        disk_bytes=48 << 20,
        disk_limit_bytes=4 << 30,
    ),
    SandboxView(
        id=SANDBOX,
        state=SandboxState.FAILED,
        node="local",
        runtime="docker",
        spec=SPEC,
        lease_id=LEASE,
        run_id=RUN,
        created_at=AT,
        changed_at=LATER,
        start_s=0.61,
        handle="3f4e5d6c7b8a",
        evidence=Evidence(
            cause="oom",
            detail="the kernel killed a child for its memory",
            exit_code=137,
            oom_killed=True,
            last_output=("MemoryError",),
            probes=(ProbeResult(at=LATER, ok=False, latency_s=0.2, detail="no answer"),),
            pressure=PRESSURE,
            detected_after_s=0.12,
        ),
        meaning=MEANING[SandboxState.FAILED],
    ),
    SnapshotRequest(epoch=1, number=2, step=20),
    SnapshotView(
        name=f"rock-snapshot:{LEASE}-1-2", step=20, at=LATER, bytes=48_210, node="local", number=2, took_s=0.4
    ),
    TaskFailure(env="alfworld", task=TASK, reason="KeyError: 'mug'"),
    TaskList(env="alfworld", split="train", tasks=(TASK,)),
    PrefetchRequest(tasks=("toolz__toolz-1.2.0-0001", "toolz__toolz-1.2.0-0002")),
    PrefetchView(images=4),
)
EXAMPLES: dict[str, object] = {type(one).__name__: one.model_dump(mode="json") for one in _ALL}
"""By the name of the model."""

EVENT_STREAM = (
    "retry: 1000\n\n: still here\nid: 4710\n\nid: 4711\ndata: "
    + EventView.model_validate(EXAMPLES["EventView"]).model_dump_json()
    + "\n\n"
)
METRICS = (
    "# HELP rock_sandboxes Sandboxes by state.\n"
    "# TYPE rock_sandboxes gauge\n"
    'rock_sandboxes{node="local",state="ready"} 8.0\n'
)
