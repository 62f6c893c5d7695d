"""Requests and views of the API. Frozen; unknown keys are errors; times are UTC datetimes, durations end in ``_s``."""

from rock.wire.models.environments import EnvView, PrefetchRequest, PrefetchView, TaskList
from rock.wire.models.episodes import EpisodeFilter, EpisodePage, EpisodeRecord, LatencyView, LedgerView, TurnRecord
from rock.wire.models.keys import KeyCreate, KeyView, Scope
from rock.wire.models.leases import (
    LeaseRequest,
    LeaseView,
    RecoverRequest,
    Recovery,
    RecoveryReport,
    SnapshotRequest,
    SnapshotView,
)
from rock.wire.models.message import Message
from rock.wire.models.nodes import NodeUpdate, NodeView, PoolSize, PoolView
from rock.wire.models.platform import EventView, Health
from rock.wire.models.quarantine import QuarantineView, TaskFailure
from rock.wire.models.runs import MetricPoint, RunCreate, RunStatus, RunUpdate, RunView
from rock.wire.models.sandboxes import (
    SNAPSHOT_PREFIX,
    Endpoint,
    Evidence,
    ExecRequest,
    ExecResult,
    Limits,
    LogView,
    Pressure,
    ProbeResult,
    RestartRequest,
    RestartView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
)

__all__ = [
    "SNAPSHOT_PREFIX",
    "Endpoint",
    "EnvView",
    "EpisodeFilter",
    "EpisodePage",
    "EpisodeRecord",
    "EventView",
    "Evidence",
    "ExecRequest",
    "ExecResult",
    "Health",
    "KeyCreate",
    "KeyView",
    "LatencyView",
    "LeaseRequest",
    "LeaseView",
    "LedgerView",
    "Limits",
    "LogView",
    "Message",
    "MetricPoint",
    "NodeUpdate",
    "NodeView",
    "PoolSize",
    "PoolView",
    "PrefetchRequest",
    "PrefetchView",
    "Pressure",
    "ProbeResult",
    "QuarantineView",
    "RecoverRequest",
    "Recovery",
    "RecoveryReport",
    "RestartRequest",
    "RestartView",
    "RunCreate",
    "RunStatus",
    "RunUpdate",
    "RunView",
    "SandboxSpec",
    "SandboxStats",
    "SandboxView",
    "Scope",
    "SnapshotRequest",
    "SnapshotView",
    "TaskFailure",
    "TaskList",
    "TurnRecord",
]
