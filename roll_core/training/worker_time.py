"""Where the workers' time went in a step, measured: useful, or a bubble with its cause (``roofline/…``, ``bubble/…``).

A worker is an engine or the learner; where both take turns on the same ones (``shared``) the engines are all there is.
Busy times are exact, told by engines and learner themselves; why an engine was idle is looked at every ``LOOK_S``, and
the idle seconds are split as the looks were. An engine is busy while it computes, however few sequences are in the
pass: how full it was is ``engine/fill``.

Invariant: useful seconds and the bubble's parts add up to workers × seconds, whatever the counters say.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from roll_core.engines.base import EngineStats
from roll_core.rollout.roofline import WorkerSeconds, efficiency, goodput, idle_cause

LOOK_S = 0.05
"""Much shorter than a step, long enough to cost nothing: a look takes microseconds."""


@dataclass(frozen=True, slots=True)
class Look:
    """One moment, all engines together but for ``idle``."""

    idle: int
    """Engines that run nothing."""
    running: int
    slots: int
    in_environment: int
    learning: bool
    held_back: bool
    """Episodes might be started if admission let them."""
    loading: bool = False


@dataclass(slots=True)
class Looks:
    """What was seen since the last step."""

    engines: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Idle engines by cause."""
    learner: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The learner's waiting by cause."""
    filled: float = 0.0
    count: int = 0

    def add(self, look: Look) -> None:
        self.count += 1
        self.filled += look.running / max(1, look.slots)
        cause, share = idle_cause(
            paused=look.loading,
            learning=look.learning and look.held_back,
            free_slots=look.slots - look.running,
            in_environment=look.in_environment,
        )
        if look.idle:
            self.engines[cause] += look.idle * share
            self.engines["train_wait" if look.learning and look.held_back else "tail"] += look.idle * (1 - share)
        if not look.learning:
            # While engines work it waits for what takes longest; once they stand still, for what they wait for.
            self.learner["tail" if look.running else cause] += 1

    @property
    def fill(self) -> float:
        return self.filled / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step. What is left of ``wall_s`` the learner waited for a batch."""

    wall_s: float
    learner_s: float
    publish_wait_s: float


@dataclass(frozen=True, slots=True)
class StepTokens:
    """``generated`` in the step; ``trained`` and ``ended``: of episodes whose fate was decided in it."""

    generated: int
    trained: int
    ended: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step's account."""

    seconds: WorkerSeconds
    workers: int
    wall_s: float
    ideal_s: float
    """T* = N(μ_g + E·μ_t)/K + t_sync, with the costs of this very step."""

    @property
    def values(self) -> dict[str, float]:
        bubble = self.seconds.bubble()
        return {
            "roofline/ideal_step_s": self.ideal_s,
            "roofline/efficiency": efficiency(self.ideal_s, self.wall_s) if self.wall_s else 0.0,
            "roofline/workers": float(self.workers),
            "bubble/total": sum(bubble.values()),
        } | {f"bubble/{cause}": share for cause, share in bubble.items()}


def step_work(
    times: StepTimes,
    before: Sequence[EngineStats],
    after: Sequence[EngineStats],
    tokens: StepTokens,
    looks: Looks,
    *,
    shared: bool = False,
) -> StepWork:
    """The account of a step between two readings of the engines. ``shared``: engines and learner are the same workers,
    one side pausing while the other works."""
    wall_s = times.wall_s
    learner_s = min(times.learner_s, wall_s)
    trained_share = goodput(tokens.trained, tokens.ended)
    seconds, busy_all_s, load_most_s = WorkerSeconds(), 0.0, 0.0
    for old, new in zip(before, after, strict=True):
        mine_s = wall_s - learner_s if shared else wall_s
        # A pass that began before the step is counted where it ended, so both are cut to what there is.
        busy_s = min(max(0.0, new.busy_s - old.busy_s), mine_s)
        load_s = min(max(0.0, new.load_s - old.load_s), mine_s - busy_s)
        idle = _split(mine_s - busy_s - load_s, looks.engines)
        seconds += WorkerSeconds(
            useful=busy_s * trained_share + (learner_s if shared else 0.0),
            redundancy=busy_s * (1 - trained_share),
            sync=load_s,
        )
        seconds += idle
        busy_all_s += busy_s
        load_most_s = max(load_most_s, load_s)
    if not shared:
        publish_s = min(times.publish_wait_s, wall_s - learner_s)
        seconds += WorkerSeconds(useful=learner_s, sync=publish_s)
        seconds += _split(wall_s - learner_s - publish_s, looks.learner)
    workers = len(before) + (not shared)
    token_s = busy_all_s / tokens.generated if tokens.generated else 0.0
    work_s = tokens.trained * token_s + learner_s * (len(before) if shared else 1)
    return StepWork(seconds, workers, wall_s, work_s / workers + load_most_s)


def _split(seconds: float, causes: Mapping[str, float]) -> WorkerSeconds:
    total = sum(causes.values())
    if not total:
        return WorkerSeconds(tail=seconds)
    return WorkerSeconds(**{cause: seconds * count / total for cause, count in causes.items()})


class Watcher:
    """Looks every ``LOOK_S`` until it is cancelled; :meth:`take` hands over what it saw."""

    def __init__(self, look: Callable[[], Look]) -> None:
        self._look = look
        self._looks = Looks()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._looks.add(self._look())

    def take(self) -> Looks:
        looks, self._looks = self._looks, Looks()
        return looks
