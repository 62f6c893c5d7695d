"""Plays a workload with the production scheduler, machine, router, episodes and pipeline, and says what it cost.

Only time is simulated: engines, environments and learner are those of this package, everything between them is not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rock.domain.outcome import LedgerState
from roll_core.engines.base import SamplingParams
from roll_core.engines.router import Router
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.buffer import Order
from roll_core.rollout.clock import now_s
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.pipeline import Pipeline
from roll_core.rollout.scheduler import Scheduler, Slots
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import SimulatedEngine
from roll_core.simulation.environment import SimulatedPrompter, SimulatedSessions
from roll_core.simulation.workload import Workload
from roll_core.types import Group, Weights

_FOREVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Policy:
    """How rollout is scheduled. The defaults are the production defaults, with rollout and training apart."""

    alpha: float = 0.0
    order: Order = "opened"
    extra_groups: int = 0
    extra_members: int = 0
    replicate: bool = True
    balance: bool = True
    train_workers: int = 0
    """Of ``workload.engines`` workers, those that only train; 0: all of them do both, in turn (colocated)."""
    concurrency: int = 1 << 30
    """Episodes at once, at most."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    waited_s: float
    learner_s: float
    publish_wait_s: float
    ended_s: float
    staleness_max: int


@dataclass(slots=True)
class Outcome:
    """What a simulation came to."""

    steps: list[StepTimes] = field(default_factory=list)
    episodes: dict[LedgerState, int] = field(default_factory=dict)
    tokens: dict[LedgerState, int] = field(default_factory=dict)
    trained_tokens_by_step: list[int] = field(default_factory=list)
    cpu_s: float = 0.0
    """CPU seconds of this process for the whole simulation, simulated parts included."""

    @property
    def elapsed_s(self) -> float:
        return self.steps[-1].ended_s

    def step_s(self, skip: int) -> float:
        """Mean seconds of a step, the first ``skip`` left out: they fill the pipeline."""
        begin = self.steps[skip - 1].ended_s if skip else 0.0
        return (self.steps[-1].ended_s - begin) / (len(self.steps) - skip)


class Simulation:
    """The parts of one run, wired as ``roll_core.training`` wires them. Make it inside a virtual loop."""

    def __init__(self, workload: Workload, policy: Policy, *, seed: int, steps: int) -> None:
        self.workload, self.policy, self.steps = workload, policy, steps
        self.outcome = Outcome()
        rollout_workers = workload.engines - policy.train_workers
        self.engines = [SimulatedEngine(workload.engine, workload.length_of) for _ in range(rollout_workers)]
        self.router = Router(self.engines, replicate=policy.replicate, balance=policy.balance)
        self.sessions = SimulatedSessions(workload.environment)
        self.player = make_player(self.router, self.sessions, workload)
        settings = MachineSettings(
            alpha=policy.alpha,
            group_size=workload.group_size,
            groups_per_batch=workload.groups,
            extra_members=policy.extra_members,
            extra_groups=policy.extra_groups,
            order=policy.order,
            filter_zero_variance=workload.environment.keep < 1,
            last_version=steps,
            seed=seed,
        )
        self.machine = RolloutMachine(settings, TaskQueue(["task"], seed))
        self.slots = Slots(policy.concurrency)
        self.scheduler = Scheduler(
            self.machine,
            self.player,
            self.slots,
            OutageGuard(free=1 << 30, rng=random.Random(seed)),
            outage_s=_FOREVER_S,
            on_booked=self._booked,
        )
        self.pipeline = Pipeline(
            self.scheduler, self.router, self._learn, step_deadline_s=_FOREVER_S, state=lambda: "simulated"
        )

    async def run(self) -> Outcome:
        cpu_s = time.process_time()
        await self.router.start()
        self.scheduler.resume()
        for _ in range(self.steps):
            await self._step()
        await self.pipeline.close()
        await self.scheduler.close()
        await self.router.close()
        self.outcome.cpu_s = time.process_time() - cpu_s
        return self.outcome

    async def _step(self) -> None:
        started_s, version = now_s(), self.machine.next_version
        groups = await self.scheduler.next_batch()
        got_s = now_s()
        stale = max(version - m.init_version for g in groups for m in g.members)
        self.outcome.trained_tokens_by_step.append(sum(m.generated_tokens for g in groups for m in g.members))
        learned = await self.pipeline.train_on(groups)
        self.outcome.steps.append(
            StepTimes(got_s - started_s, learned.learner_s, learned.publish_wait_s, now_s(), stale)
        )

    async def _learn(self, groups: tuple[Group, ...]) -> tuple[dict[str, float], Weights]:
        workers = self.policy.train_workers or self.workload.engines
        version = self.machine.next_version  # the machine counts the batch that was taken
        await asyncio.sleep(sum(len(g.members) for g in groups) * self.workload.train_s / workers)
        return {}, Weights(version, {})

    def _booked(self, booking: Booking) -> None:
        tokens = booking.trajectory.generated_tokens if booking.trajectory else 0
        self.outcome.episodes[booking.state] = self.outcome.episodes.get(booking.state, 0) + 1
        self.outcome.tokens[booking.state] = self.outcome.tokens.get(booking.state, 0) + tokens


def make_player(engine: Router, sessions: SimulatedSessions, workload: Workload) -> Player:
    limits = EpisodeLimits(
        max_turns=workload.environment.turns,
        max_tokens_per_turn=1 << 40,
        max_context_tokens=1 << 50,
        open_s=_FOREVER_S,
        reset_s=_FOREVER_S,
        step_s=_FOREVER_S,
        generate_s=_FOREVER_S,
        episode_s=2 * _FOREVER_S,
        close_s=_FOREVER_S,
    )
    return Player("simulated", {}, sessions, engine, SimulatedPrompter(), SamplingParams(max_tokens=1), limits)


def simulate(workload: Workload, policy: Policy, *, seed: int, steps: int = 1) -> Outcome:
    """Raises Deadlock where production would hang."""

    async def main() -> Outcome:
        return await Simulation(workload, policy, seed=seed, steps=steps).run()

    return run_virtual(main())


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
