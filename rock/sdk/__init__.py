"""The client of the platform, for agents, trainers and dashboards: asynchronous first, `RockSync` for everything else.

    import asyncio
    from rock.sdk import Rock

    async def main():
        async with Rock() as rock, rock.env("alfworld", seed=1) as env:
            observation, info = await env.reset()
            observation, reward, terminated, truncated, info = await env.step("look")

    asyncio.run(main())

Every error is a `RockError` whose ``fault`` says who must act: the caller, the agent, the environment or the platform.
"""

from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    DeadlineExceeded,
    Diverged,
    EnvironmentError,  # noqa: A004 - the field's word
    Fault,
    Forbidden,
    ImageBuildFailed,
    ImageNotFound,
    InvalidAction,
    InvalidRequest,
    LeaseExpired,
    NotFound,
    PlatformUnavailable,
    Quarantined,
    QuotaExceeded,
    RockError,
    RuntimeUnavailable,
    SandboxLost,
    StaleEpoch,
    StorageError,
    Unauthorized,
)
from rock.domain.outcome import LedgerState
from rock.domain.sandbox import SandboxState
from rock.sdk.client import Rock
from rock.sdk.forwarding import Forward
from rock.sdk.jobs import FileChange, Job
from rock.sdk.launch import Launched, ensure_platform
from rock.sdk.sandbox import DiskUsage, FileEntry, Sandbox, Shell, ShellResult, Usage
from rock.sdk.session import EnvSession, Reset, Step
from rock.sdk.sync import EnvSessionSync, RockSync
from rock.sdk.sync_sandbox import ForwardSync, JobSync, SandboxSync, ShellSync
from rock.wire.models import (
    EnvView,
    EpisodePage,
    EpisodeRecord,
    EventView,
    Evidence,
    ExecRequest,
    ExecResult,
    Health,
    KeyView,
    LatencyView,
    LeaseRequest,
    LeaseView,
    LedgerView,
    Limits,
    LogView,
    MetricPoint,
    NodeView,
    PoolView,
    QuarantineView,
    RecoveryReport,
    RestartView,
    RunCreate,
    RunStatus,
    RunUpdate,
    RunView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
    TaskList,
    TurnRecord,
)
from rock.wire.rhythm import EpisodeRhythm, RhythmCoupling, RhythmHead, RhythmView

__all__ = [
    "CapacityExceeded",
    "Conflict",
    "DeadlineExceeded",
    "DiskUsage",
    "Diverged",
    "EnvSession",
    "EnvSessionSync",
    "EnvView",
    "EnvironmentError",
    "EpisodePage",
    "EpisodeRecord",
    "EpisodeRhythm",
    "EventView",
    "Evidence",
    "ExecRequest",
    "ExecResult",
    "Fault",
    "FileChange",
    "FileEntry",
    "Forbidden",
    "Forward",
    "ForwardSync",
    "Health",
    "ImageBuildFailed",
    "ImageNotFound",
    "InvalidAction",
    "InvalidRequest",
    "Job",
    "JobSync",
    "KeyView",
    "LatencyView",
    "Launched",
    "LeaseExpired",
    "LeaseRequest",
    "LeaseView",
    "LedgerState",
    "LedgerView",
    "Limits",
    "LogView",
    "MetricPoint",
    "NodeView",
    "NotFound",
    "PlatformUnavailable",
    "PoolView",
    "QuarantineView",
    "Quarantined",
    "QuotaExceeded",
    "RecoveryReport",
    "Reset",
    "RestartView",
    "RhythmCoupling",
    "RhythmHead",
    "RhythmView",
    "Rock",
    "RockError",
    "RockSync",
    "RunCreate",
    "RunStatus",
    "RunUpdate",
    "RunView",
    "RuntimeUnavailable",
    "Sandbox",
    "SandboxLost",
    "SandboxSpec",
    "SandboxState",
    "SandboxStats",
    "SandboxSync",
    "SandboxView",
    "Shell",
    "ShellResult",
    "ShellSync",
    "StaleEpoch",
    "Step",
    "StorageError",
    "TaskList",
    "TurnRecord",
    "Unauthorized",
    "Usage",
    "ensure_platform",
]
