"""The loop: get batch → advantages → learner step → publish weights, while rollout goes on.

Invariants: the event loop never blocks (the learner works in a thread of its own); a batch holds only samples that the
machine certifies fresh; weights reach the engine before an episode may be initiated by them; whatever ends the run,
every sandbox is given back and every episode is booked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rock.domain.outcome import LedgerState
from roll_core.config import Recipe
from roll_core.engines.base import Engine
from roll_core.errors import EngineDead, PlatformOutage
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.concurrency import ConcurrencyController, ConcurrencySettings
from roll_core.rollout.episode import Player
from roll_core.rollout.machine import RolloutMachine
from roll_core.rollout.pipeline import Pipeline
from roll_core.rollout.regulator import Regulator
from roll_core.rollout.roofline import goodput
from roll_core.rollout.scheduler import Scheduler, Slots
from roll_core.rollout.work import Booking
from roll_core.training.checkpoint import CheckpointStore, TrainerState
from roll_core.training.evaluate import evaluate
from roll_core.training.event_log import EventSink
from roll_core.training.metrics import Rate, RolloutMeter, engine_values, staleness
from roll_core.training.progress import Display
from roll_core.training.reporting import Reporter
from roll_core.training.roles import Roles
from roll_core.training.update import update
from roll_core.training.watchdog import Watch, within
from roll_core.training.worker import Worker
from roll_core.types import Group, Trajectory, Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run is about, in the end. ``success_…`` are None where the recipe leaves evaluation out."""

    steps: int
    success_before: Rate | None
    success_after: Rate | None
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the loop works with, made by ``assembly``."""

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


class Trainer:
    def __init__(self, parts: Parts, *, resumed: TrainerState | None = None) -> None:
        self._p = parts
        self._recipe = parts.recipe
        self.step = resumed.step if resumed else 0
        self._elapsed_before_s = resumed.elapsed_s if resumed else 0.0
        self._before = Rate(**resumed.success_before) if resumed and resumed.success_before else None  # type: ignore[arg-type]
        self._resumed = resumed is not None
        self._saved_step = self.step if resumed else -1
        self._started_s: float | None = None
        self._meter = RolloutMeter()
        self._regulating: asyncio.Task[None] | None = None
        self._batch_progress = 0.0
        self._scheduler = Scheduler(
            parts.machine,
            parts.player,
            parts.slots,
            parts.guard,
            outage_s=parts.recipe.platform.outage_s,
            on_booked=self._booked,
            on_ended=self._ended,
            on_started=parts.events.started,
        )
        self._pipeline = Pipeline(
            self._scheduler,
            parts.engine,
            lambda groups: parts.worker.run(self._learn, groups),
            step_deadline_s=parts.recipe.training.step_deadline_s,
            state=self._state,
            on_published=parts.events.published,
        )
        parts.events.begin(parts.run_id, self.step, parts.roles.weights())
        if resumed:
            for trajectory in resumed.machine.kept:  # the log's older parts may be gone
                parts.events.ended(trajectory)
            self._scheduler.carry_out(parts.machine.restore(resumed.machine))

    async def run(self) -> Summary:
        """Evaluate, train, evaluate. Raises what made the run impossible; then, too, nothing is left in flight."""
        evaluating = self._recipe.evaluation.tasks > 0
        try:
            if evaluating and self._before is None:
                self._before = await self._evaluate("before")
            if self._saved_step < 0:
                await self._save()
            await self._train()
            await self._pipeline.settled()
            await self._scheduler.close()
            await self._save()
            after = await self._evaluate("after") if evaluating else None
        except (PlatformOutage, EngineDead, asyncio.CancelledError):
            if not self._pipeline.learning:  # else learner and machine are a step apart: the last checkpoint must do
                await self._save()
            raise
        finally:
            self._stop_regulating()
            await self._pipeline.close()
            await self._scheduler.close()
        return Summary(self.step, self._before, after, self._elapsed_s())

    # --- training ----------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        training, checkpoint = self._recipe.training, self._recipe.checkpoint
        await self._p.reporter.status("training")
        self._p.display.phase("reinforcement learning", training.steps, self.step)
        self._started_s = time.monotonic()
        self._regulate()
        self._scheduler.resume()
        while self.step < training.steps and await self._one_step():
            if self.step % checkpoint.every_steps == 0:
                await self._save()
            every = self._recipe.evaluation.every_steps
            if every and self.step % every == 0 and self.step < training.steps:
                await self._evaluate_between()
        self._scheduler.pause()
        self._stop_regulating()

    def _regulate(self) -> None:
        """Let the engine's pressure decide how many episodes are played at once, up to the recipe's number."""
        rollout = self._recipe.rollout
        if not rollout.adaptive_concurrency:
            return
        controller = ConcurrencyController(
            ConcurrencySettings(ceiling=rollout.concurrency), min(rollout.concurrency, self._p.engine.stats().slots)
        )
        regulator = Regulator(controller, self._p.engine, self._scheduler, self._p.slots)
        self._regulating = asyncio.get_running_loop().create_task(regulator.run(), name="adaptive concurrency")
        self._regulating.add_done_callback(self._regulated)

    def _regulated(self, task: asyncio.Task[None]) -> None:
        """It runs until it is cancelled; if it ends by itself nobody else would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._scheduler.fail(error)

    def _stop_regulating(self) -> None:
        if self._regulating is not None:
            self._regulating.cancel()
            self._regulating = None
            self._p.slots.resize(self._recipe.rollout.concurrency)  # evaluation is not held back

    async def _one_step(self) -> bool:
        """Whether there was time for it."""
        stats, started_s = self._p.engine.stats(), time.monotonic()
        groups = await self._next_batch()
        if groups is None:
            return False
        got_s = time.monotonic()
        version = self._p.roles.version
        self._batch_progress = self._progress()
        self._p.events.batch(self.step + 1, version, self._batch_progress, groups)
        learned = await self._pipeline.train_on(groups)
        self.step += 1
        ended_s = time.monotonic()
        values = dict(learned.values)
        values |= self._meter.values() | staleness(groups, version)
        values |= engine_values(stats, self._p.engine.stats(), ended_s - started_s)
        values |= {
            "time/batch_wait_s": got_s - started_s,
            "time/learner_s": learned.learner_s,
            "time/publish_wait_s": learned.publish_wait_s,
            "time/step_s": ended_s - started_s,
            "rollout/in_flight": float(self._scheduler.running),
            "rollout/goodput": self._goodput(),
            "rollout/concurrency": float(self._p.slots.total),
            "rollout/filtered_in_a_row": float(self._p.machine.filtered_in_a_row),
        }
        self._meter = RolloutMeter()
        self._p.reporter.metrics(self.step, values)
        self._p.display.step(self.step, values)
        self._p.reporter.check()
        return True

    async def _next_batch(self) -> tuple[Group, ...] | None:
        """None when the time budget ends before a batch is ready."""
        training = self._recipe.training
        left_s = training.time_budget_s - self._elapsed_s() if training.time_budget_s else math.inf
        if left_s > training.batch_deadline_s:
            return await within(
                "a batch of episodes", self._scheduler.next_batch(), training.batch_deadline_s, self._state
            )
        try:
            async with asyncio.timeout(max(0.0, left_s)) as budget:
                return await self._scheduler.next_batch()
        except TimeoutError:
            if not budget.expired():
                raise
            return None

    def _learn(self, groups: tuple[Group, ...]) -> tuple[dict[str, float], Weights]:
        """In the learner's thread."""
        values = update(self._recipe, self._p.roles, groups, self._batch_progress)
        weights = self._p.roles.weights()
        self._p.events.updated(self.step + 1, weights)
        return values, weights

    def _goodput(self) -> float:
        """Share of the tokens, of all training episodes that have ended, that were trained on."""
        accounts = self._p.machine.ledger.snapshot().accounts
        ended = sum(a.tokens for state, a in accounts.items() if state is not LedgerState.EVALUATED)
        return goodput(accounts[LedgerState.TRAINED].tokens, ended)

    def _progress(self) -> float:
        """The share of the run that is over, by steps or by time, whichever is further on."""
        training = self._recipe.training
        by_time = self._elapsed_s() / training.time_budget_s if training.time_budget_s else 0.0
        return min(1.0, max(self.step / training.steps, by_time))

    def _elapsed_s(self) -> float:
        """Seconds of reinforcement learning, those before a resume included."""
        return self._elapsed_before_s + (time.monotonic() - self._started_s if self._started_s is not None else 0.0)

    def _state(self) -> str:
        machine, stats = self._p.machine, self._p.engine.stats()
        return (
            f"State: {self._scheduler.running} episodes in flight, {machine.buffer.samples} samples in the buffer, "
            f"{machine.filtered_in_a_row} groups in a row without signal, {self._p.guard.streak} losses in a row, "
            f"engine at version {stats.version} with {stats.running} running and {stats.waiting} waiting."
        )

    # --- evaluation --------------------------------------------------------------------------------------------------

    async def _evaluate_between(self) -> None:
        self._scheduler.pause()
        await self._pipeline.settled()
        await self._evaluate(f"after {self.step} steps")
        self._p.display.phase("reinforcement learning", self._recipe.training.steps, self.step)
        await self._p.reporter.status("training")
        self._scheduler.resume()

    async def _evaluate(self, when: str) -> Rate:
        evaluation = self._recipe.evaluation
        await self._p.reporter.status("evaluating")
        self._p.display.phase(f"evaluation {when}", evaluation.tasks)
        sampling = replace(self._p.player.sampling, temperature=evaluation.temperature, top_p=1.0)
        done = 0

        deadline_s = self._recipe.training.batch_deadline_s
        watch = Watch(f"an episode of the evaluation {when}", deadline_s, self._state)

        def booked(booking: Booking) -> None:
            nonlocal done
            if booking.state is LedgerState.EVALUATED:
                watch.progressed()
            done += booking.state is LedgerState.EVALUATED
            self._p.display.advance(done)
            self._p.events.booked(booking)
            self._p.reporter.episode(booking, phase="eval", split=self._recipe.env.eval_split)

        evaluating = evaluate(
            self._p.eval_tasks,
            evaluation.tasks,
            evaluation.seed,
            replace(self._p.player, sampling=sampling, limits=replace(self._p.player.limits, max_invalid_turns=0)),
            self._p.machine,
            self._p.slots,
            self._p.guard,
            outage_s=self._recipe.platform.outage_s,
            on_booked=booked,
        )
        rate = await watch.over(evaluating)
        self._p.reporter.metrics(self.step, {"eval/success": rate.rate, "eval/low": rate.low, "eval/high": rate.high})
        self._p.display.note(f"success {when}: {rate}")
        self._p.reporter.check()
        return rate

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        """Checkpoint the present step, once. The machine's state is taken here and now; rollout goes on meanwhile."""
        if self._saved_step == self.step:
            return
        before = self._before.as_dict() if self._before else None
        state = TrainerState(self.step, self._p.machine.state(), self._elapsed_s(), before)
        saving = self._p.worker.run(self._p.checkpoints.save, state, self._p.roles.save)
        await within("writing a checkpoint", saving, self._recipe.training.step_deadline_s, self._state)
        self._saved_step = state.step
        self._p.events.saved(state.step)

    def _booked(self, booking: Booking) -> None:
        self._p.events.booked(booking)
        self._p.reporter.episode(booking, phase="train", split=self._recipe.env.train_split)

    def _ended(self, trajectory: Trajectory) -> None:
        self._p.events.ended(trajectory)
        self._meter.add(trajectory)
