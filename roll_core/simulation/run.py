"""Plays a workload with the production scheduler, machine, router, episodes and pipeline, and says what it cost.

Only time is simulated: engines, environments and learner are those of this package, everything between them is not.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field, fields

from rock.domain.outcome import LedgerState
from roll_core.engines.base import SamplingParams
from roll_core.engines.router import Router
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.buffer import Order
from roll_core.rollout.clock import now_s
from roll_core.rollout.concurrency import ConcurrencyController, ConcurrencySettings
from roll_core.rollout.episode import EpisodeLimits, Player
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.pipeline import Pipeline
from roll_core.rollout.regulator import Regulator
from roll_core.rollout.roofline import WorkerSeconds, goodput, idle_cause
from roll_core.rollout.scheduler import Scheduler, Slots
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import SimulatedEngine
from roll_core.simulation.environment import SimulatedPrompter, SimulatedSessions
from roll_core.simulation.workload import Workload
from roll_core.types import Group, Trajectory, Weights

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
    fill: float | None = None
    """Share of the engines' slots that adaptive concurrency keeps decoding; None: everything admitted is started."""


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
    worker_seconds: WorkerSeconds = field(default_factory=WorkerSeconds)
    completed: list[int] = field(default_factory=list)
    """Episodes played to their end, by the end of each step."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each sample that was trained on."""
    concurrency: list[int] = field(default_factory=list)
    """The limit on episodes at once, at the end of each step."""
    cpu_s: float = 0.0
    """CPU seconds of this process for the whole simulation, simulated parts included."""

    @property
    def elapsed_s(self) -> float:
        return self.steps[-1].ended_s

    @property
    def goodput(self) -> float:
        return goodput(self.tokens.get(LedgerState.TRAINED, 0), sum(self.tokens.values()))

    def step_s(self, skip: int, samples: int) -> float:
        """Mean seconds of a step in the steady state, the first ``skip`` left out: they fill the pipeline.

        What rollout produced in that time counts as well as what was trained: a learner that lives on what was buffered
        at the beginning is not in a steady state, and its steps say too little.
        """
        begin_s = self.steps[skip - 1].ended_s if skip else 0.0
        passed_s = self.steps[-1].ended_s - begin_s
        completed = self.completed[-1] - (self.completed[skip - 1] if skip else 0)
        return passed_s / min(len(self.steps) - skip, completed / samples)


class Simulation:
    """The parts of one run, wired as ``roll_core.training`` wires them. Make it inside a virtual loop."""

    def __init__(self, workload: Workload, policy: Policy, *, seed: int, steps: int) -> None:
        self.workload, self.policy, self.steps = workload, policy, steps
        self.outcome = Outcome()
        self._over = False
        self._completed = 0
        self._slot_count = (workload.engines - policy.train_workers) * workload.engine.slots
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
            seed=seed,
        )
        self.machine = RolloutMachine(settings, TaskQueue(["task"], seed))
        self.slots = Slots(1 << 30 if policy.fill is None else max(1, round(self._slot_count * policy.fill)))
        self.scheduler = Scheduler(
            self.machine,
            self.player,
            self.slots,
            OutageGuard(free=1 << 30, rng=random.Random(seed)),
            outage_s=_FOREVER_S,
            on_booked=self._booked,
            on_ended=self._ended,
        )
        self.pipeline = Pipeline(
            self.scheduler, self.router, self._learn, step_deadline_s=_FOREVER_S, state=lambda: "simulated"
        )

        self._observer = Observer(self)

    async def run(self) -> Outcome:
        cpu_s = time.process_time()
        await self.router.start()
        background = [asyncio.get_running_loop().create_task(self._observer.run())]
        if self.policy.fill is not None:
            controller = ConcurrencyController(ConcurrencySettings(fill=self.policy.fill), self.slots.total)
            regulator = Regulator(controller, self.router, self.scheduler, self.slots)
            background.append(asyncio.get_running_loop().create_task(regulator.run()))
        self.scheduler.resume()
        for _ in range(self.steps):
            await self._step()
        for task in background:
            task.cancel()
        self.outcome.worker_seconds = self._observer.total(self.outcome.tokens)
        self._over = True
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
        learned = await self.pipeline.train_on(groups)
        self.outcome.steps.append(
            StepTimes(got_s - started_s, learned.learner_s, learned.publish_wait_s, now_s(), stale)
        )
        self.outcome.concurrency.append(self.slots.total)
        self.outcome.completed.append(self._completed)

    async def _learn(self, groups: tuple[Group, ...]) -> tuple[dict[str, float], Weights]:
        workers = self.policy.train_workers or self.workload.engines
        version = self.machine.next_version  # the machine counts the batch that was taken
        await asyncio.sleep(sum(len(g.members) for g in groups) * self.workload.train_s / workers)
        return {}, Weights(version, {})

    def _ended(self, trajectory: Trajectory) -> None:
        self._completed += 1

    def _booked(self, booking: Booking) -> None:
        if self._over:
            return  # what the end of the run cancels is no cost of the policy
        tokens = booking.trajectory.generated_tokens if booking.trajectory else 0
        self.outcome.episodes[booking.state] = self.outcome.episodes.get(booking.state, 0) + 1
        self.outcome.tokens[booking.state] = self.outcome.tokens.get(booking.state, 0) + tokens
        if booking.state is LedgerState.TRAINED:
            self.outcome.lengths.append(tokens)


_LOOK_EVERY_S = 1.0


class Observer:
    """Integrates where the worker seconds go, looking once a second."""

    def __init__(self, simulation: Simulation) -> None:
        self._s = simulation
        self._seconds: dict[str, float] = dict.fromkeys((f.name for f in fields(WorkerSeconds)), 0.0)
        self._generated = 0.0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._look()

    def _look(self) -> None:
        s = self._s
        colocated, learning = not s.policy.train_workers, s.pipeline.learning
        workers = s.workload.engines if colocated else s.policy.train_workers
        if learning:
            self._seconds["useful"] += workers * _LOOK_EVERY_S
        elif not colocated:
            self._seconds["tail"] += workers * _LOOK_EVERY_S
        if colocated and learning:
            return
        stats = [(engine.stats(), engine) for engine in s.engines]
        running = sum(st.running for st, _ in stats)
        in_environment = max(0, s.scheduler.running - running - sum(st.waiting for st, _ in stats))
        for st, engine in stats:
            work = (
                0.0
                if engine.paused or not st.running
                else st.running * engine.model.full_token_s / (engine.model.token_s(st.running))
            )
            self._generated += work * _LOOK_EVERY_S
            cause, share = idle_cause(
                paused=engine.paused,
                learning=learning and s.slots.free > 0,
                free_slots=sum(x.slots for x, _ in stats) - running,
                in_environment=in_environment,
            )
            self._seconds[cause] += (1 - work) * share * _LOOK_EVERY_S
            self._seconds["tail"] += (1 - work) * (1 - share) * _LOOK_EVERY_S

    def total(self, tokens: dict[LedgerState, int]) -> WorkerSeconds:
        """``tokens`` by account: what was not trained on is the redundancy's."""
        share = goodput(tokens.get(LedgerState.TRAINED, 0), sum(tokens.values()))
        seconds = dict(self._seconds)
        seconds["useful"] += self._generated * share
        seconds["redundancy"] += self._generated * (1 - share)
        return WorkerSeconds(**seconds)


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
