"""What a run is made of, once it is made: everything the loop works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roll_core.config import Recipe
from roll_core.engines.base import Engine
from roll_core.models import Tokenizer
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.episode import Player
from roll_core.rollout.machine import RolloutMachine
from roll_core.rollout.scheduler import Slots
from roll_core.training.alerts import Alarms
from roll_core.training.checkpoint import CheckpointStore
from roll_core.training.event_log import EventSink
from roll_core.training.progress import Display
from roll_core.training.reporting import Reporter
from roll_core.training.roles import Roles
from roll_core.training.worker import Worker


@dataclass(frozen=True, slots=True)
class Parts:
    """Made by ``assembly`` and ``run``."""

    recipe: Recipe
    engine: Engine
    roles: Roles
    player: Player
    machine: RolloutMachine
    slots: Slots
    guard: OutageGuard
    eval_tasks: Sequence[str]
    checkpoints: CheckpointStore
    reporter: Reporter
    display: Display
    worker: Worker
    events: EventSink
    run_id: str
    tokenizer: Tokenizer | None = None
    """To show tokens to people."""
    alarms: Alarms | None = None
