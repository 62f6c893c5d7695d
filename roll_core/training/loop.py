"""The loop: get batch → advantages → learner step → publish weights, while rollout goes on.

Invariants: the event loop never blocks (the learner works in a thread of its own); a batch holds only samples that the
machine certifies fresh; weights reach the engine before an episode may be initiated by them; whatever ends the run,
every sandbox is given back and every episode is booked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rock.sdk import EpisodeRhythm
from roll_core.errors import EngineDead, PlatformOutage
from roll_core.learners.actor_attn import AttentionReader
from roll_core.rollout.pipeline import Pipeline
from roll_core.rollout.scheduler import Scheduler
from roll_core.rollout.work import Booking
from roll_core.training.ahead import ReadingAhead
from roll_core.training.checkpoint import TrainerState
from roll_core.training.evaluate import Evaluator
from roll_core.training.metrics import Rate, RolloutMeter, engine_values, members, staleness, weight_values
from roll_core.training.mismatch import drift_detector
from roll_core.training.parts import Parts
from roll_core.training.reporting import report_published, report_rhythms
from roll_core.training.rhythm_record import recorded
from roll_core.training.steering import Steering
from roll_core.training.update import update
from roll_core.training.watchdog import within
from roll_core.training.worker import torch_threads
from roll_core.training.worker_time import StepTimes
from roll_core.types import Group, Trajectory, Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run is about, in the end. ``success_…`` are None where the recipe leaves evaluation out."""

    steps: int
    success_before: Rate | None
    success_after: Rate | None
    elapsed_s: float
    work: dict[str, float] = field(default_factory=dict)
    """Roofline and bubble of all steps together, named as in the metrics."""
    advice: str = ""
    """How to tune the run, by what it measured."""


class Trainer:
    def __init__(self, parts: Parts, *, resumed: TrainerState | None = None) -> None:
        self._p = parts
        self._recipe = parts.recipe
        self.step = resumed.step if resumed else 0
        self._elapsed_before_s = resumed.elapsed_s if resumed else 0.0
        self._before = resumed.success_before if resumed else None
        self._resumed = resumed is not None
        self._saved_step = self.step if resumed else -1
        self._started_s: float | None = None
        self._meter = RolloutMeter()
        self._drift = drift_detector(parts.recipe)
        self._batch_progress = 0.0
        self._rhythms: list[EpisodeRhythm] = []
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
            on_published=self._published,
        )
        self._steering = Steering(parts, self._scheduler, lambda: self._pipeline.learning)
        self._evaluator = Evaluator(parts, self._state)
        self._ahead = _reading_ahead(parts, lambda: self._steering.learner_threads)
        parts.events.begin(parts.run_id, self.step, parts.roles.weights())
        if resumed:
            for trajectory in resumed.machine.kept:  # the log's older parts may be gone
                parts.events.ended(trajectory)
            self._scheduler.carry_out(parts.machine.restore(resumed.machine))
            self._steering.resumed(resumed.machine.pace)

    async def run(self) -> Summary:
        """Evaluate, train, evaluate. Raises what made the run impossible; then, too, nothing is left in flight."""
        evaluating = self._recipe.evaluation.tasks > 0
        try:
            if evaluating and self._before is None:
                self._before = await self._evaluator.measure("before", self.step)
            if self._saved_step < 0:
                await self._save()
            await self._train()
            await self._pipeline.settled()
            await self._scheduler.close()
            await self._save()
            after = await self._evaluator.measure("after", self.step) if evaluating else None
        except (PlatformOutage, EngineDead, asyncio.CancelledError):
            if not self._pipeline.learning:  # else learner and machine are a step apart: the last checkpoint must do
                await self._save()
            raise
        finally:
            self._steering.stop()
            await self._pipeline.close()
            await self._scheduler.close()
        return Summary(
            self.step, self._before, after, self._elapsed_s(), self._steering.work(), self._steering.advice()
        )

    # --- training ----------------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        training, checkpoint = self._recipe.training, self._recipe.checkpoint
        await self._p.reporter.status("training")
        self._p.display.phase("reinforcement learning", training.steps, self.step)
        self._started_s = time.monotonic()
        self._steering.start()
        self._scheduler.resume()
        while self.step < training.steps and await self._one_step():
            if self.step % checkpoint.every_steps == 0:
                await self._save()
            every = self._recipe.evaluation.every_steps
            if every and self.step % every == 0 and self.step < training.steps:
                await self._evaluate_between()
        self._scheduler.pause()
        self._steering.stop()

    async def _one_step(self) -> bool:
        """Whether there was time for it."""
        stats, started_s = members(self._p.engine), time.monotonic()
        self._steering.step_began()
        async with self._ahead.while_waiting() if self._ahead else contextlib.nullcontext():
            groups = await self._next_batch()
        if groups is None:
            return False
        got_s = time.monotonic()
        version = self._p.roles.version
        self._batch_progress = self._progress()
        if self._p.alarms is not None:
            self._p.alarms.before_training(self.step + 1, self._meter.values() | staleness(groups, version))
        threads = self._steering.learner_threads
        self._p.events.batch(self.step + 1, version, self._batch_progress, groups, threads=threads)
        learned = await self._pipeline.train_on(groups)
        self.step += 1
        ended_s = time.monotonic()
        times = StepTimes(ended_s - started_s, learned.learner_s, learned.publish_wait_s)
        values = dict(learned.values)
        values |= self._meter.values() | staleness(groups, version)
        values |= engine_values(stats, members(self._p.engine), ended_s - started_s) | weight_values(self._p.engine)
        values |= {
            "time/batch_wait_s": got_s - started_s,
            "time/learner_s": learned.learner_s,
            "time/publish_wait_s": learned.publish_wait_s,
            "time/step_s": ended_s - started_s,
            "rollout/in_flight": float(self._scheduler.running),
            "rollout/concurrency": float(self._p.slots.total),
            "rollout/filtered_in_a_row": float(self._p.machine.filtered_in_a_row),
        }
        values |= self._steering.step_ended(self.step, times, groups, self._meter)
        values |= await self._watch_mismatch(learned.values)
        if self._p.alarms is not None:
            self._p.alarms.after_training(self.step, learned.values)
            values |= self._p.alarms.values()
        self._meter = RolloutMeter()
        if "rhythm/time_s" in values:
            values["rhythm/share_of_step"] = values["rhythm/time_s"] / max(values["time/step_s"], 1e-9)
        if self._ahead is not None:
            values |= self._ahead.step_ended()
        report_rhythms(self._p.reporter, self._rhythms)
        self._p.reporter.metrics(self.step, values)
        self._p.display.step(self.step, values)
        self._p.reporter.check()
        return True

    async def _watch_mismatch(self, values: Mapping[str, float]) -> dict[str, float]:
        """Tell of a drift between engine and learner, and of its end: in log and metrics, and as the run's detail."""
        for notice in self._drift.observe(values):
            log.log(logging.WARNING if notice.raised else logging.INFO, "step %d: %s", self.step, notice.text)
            self._p.display.note(notice.text)
            await self._p.reporter.status("training", notice.text)
        return {"mismatch/alarm": float(len(self._drift.raised))}

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
        version = self._p.roles.version
        with torch_threads(self._steering.learner_threads):
            values = update(self._recipe, self._p.roles, groups, self._batch_progress)
        if self._p.tokenizer is not None and self._p.roles.actor_attn is not None:
            self._rhythms = recorded(
                self._recipe, self._p.roles, groups, step=self.step + 1, version=version, tokenizer=self._p.tokenizer
            )
        weights = self._p.roles.weights()
        self._p.events.updated(self.step + 1, weights)
        return values, weights

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
        await self._evaluator.measure(f"after {self.step} steps", self.step)
        self._p.display.phase("reinforcement learning", self._recipe.training.steps, self.step)
        await self._p.reporter.status("training")
        self._scheduler.resume()

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        """Checkpoint the present step, once. The machine's state is taken here and now; rollout goes on meanwhile."""
        if self._saved_step == self.step:
            return
        state = TrainerState(self.step, self._p.machine.state(), self._elapsed_s(), self._before)
        saving = self._p.worker.run(self._p.checkpoints.save, state, self._p.roles.save)
        await within("writing a checkpoint", saving, self._recipe.training.step_deadline_s, self._state)
        self._saved_step = state.step
        self._p.events.saved(state.step)

    def _published(self, version: int) -> None:
        self._p.events.published(version)
        report_published(self._p.reporter, version)

    def _booked(self, booking: Booking) -> None:
        self._p.events.booked(booking)
        self._p.reporter.episode(booking, phase="train", split=self._recipe.env.train_split)

    def _ended(self, trajectory: Trajectory) -> None:
        self._p.events.ended(trajectory)
        self._meter.add(trajectory)
        if self._ahead is not None:
            self._ahead.look()


def _reading_ahead(parts: Parts, threads: Callable[[], int]) -> ReadingAhead | None:
    """None where no attention is read, or elsewhere."""
    reader, buffer = parts.roles.actor_attn, parts.machine.buffer
    if not isinstance(reader, AttentionReader):
        return None

    def finished() -> list[Group]:
        return [ready.group for ready in buffer.groups]

    return ReadingAhead(parts.recipe.algorithm, reader, parts.worker, finished, threads)
