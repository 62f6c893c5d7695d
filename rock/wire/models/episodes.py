"""Episodes as booked in the ledger, and what is asked of them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from rock.domain.outcome import LedgerState
from rock.wire.models.message import Message


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
    reward_min: float | None = None
    reward_max: float | None = None
    """Both inclusive; an episode without a reward has none of any size."""
    group: str = ""
    """The id of its group, exactly."""
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
