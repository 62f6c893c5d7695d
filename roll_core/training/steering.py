"""Measures every step of a run and, with ``rollout.auto``, sets the pace of the next ones: α, redundancy, concurrency.

The edge around ``roll_core.training.tuner``, which decides, and ``roll_core.training.worker_time``, which accounts.
Invariants: between :meth:`Steering.start` and :meth:`Steering.stop` its tasks run, and one that ends by itself ends the
run; a step trains with the threads that :attr:`Steering.learner_threads` said when its batch was logged; each change
of pace is one readable line in the event log, the run's log and the display.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rock.domain.outcome import LedgerState
from roll_core.engines.base import EngineStats
from roll_core.rollout.concurrency import ConcurrencyController, ConcurrencySettings
from roll_core.rollout.ledger import LedgerSnapshot
from roll_core.rollout.machine import Pace
from roll_core.rollout.regulator import Regulator
from roll_core.rollout.roofline import WorkerSeconds, efficiency, goodput
from roll_core.rollout.scheduler import Scheduler
from roll_core.training.metrics import RolloutMeter, members
from roll_core.training.parts import Parts
from roll_core.training.tuner import Bounds, Decision, StepFacts, Tuner
from roll_core.training.worker_time import Look, StepTimes, StepTokens, StepWork, Watcher, step_work
from roll_core.types import Group

log = logging.getLogger(__name__)


class Steering:
    def __init__(self, parts: Parts, scheduler: Scheduler, learning: Callable[[], bool]) -> None:
        self._p = parts
        self._scheduler = scheduler
        self._learning = learning
        self._auto = parts.recipe.rollout.auto
        self._tuner = Tuner(_bounds(parts))
        self._watcher = Watcher(self._look)
        self._tasks: list[asyncio.Task[None]] = []
        self._engines: tuple[EngineStats, ...] = members(parts.engine)
        self._ledger: LedgerSnapshot = parts.machine.ledger.snapshot()
        self._total = WorkerSeconds()
        self._ideal_s = self._wall_s = 0.0
        self._decision: Decision | None = None
        self._load_s = 0.0
        self.learner_threads = 0
        """For torch in a step of the learner; 0: as everywhere else."""
        if self._auto and parts.recipe.rollout.alpha == 0:
            self.learner_threads = self._all_threads()

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        rollout = self._p.recipe.rollout
        self._run(self._watcher.run(), "where time goes")
        if self._p.alarms is not None:
            self._run(self._p.alarms.watch(), "alerts of silence")
        if rollout.adaptive_concurrency or self._auto:
            start = min(rollout.concurrency, self._p.engine.stats().slots)
            controller = ConcurrencyController(ConcurrencySettings(ceiling=rollout.concurrency), max(1, start))
            regulator = Regulator(controller, self._p.engine, self._scheduler, self._p.slots)
            self._run(regulator.run(), "adaptive concurrency")

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            self._p.slots.resize(self._p.recipe.rollout.concurrency)  # evaluation is not held back
        self._tasks = []

    def resumed(self, pace: Pace | None) -> None:
        """Go on at the pace of the checkpoint, as far as the recipe still allows it."""
        if not self._auto or pace is None:
            return
        bounds = self._tuner.bounds
        extra_groups = pace.extra_groups if bounds.order == "finished" else 0
        self._set(Pace(min(pace.alpha, bounds.alpha), extra_groups, pace.extra_members))

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """They run until they are cancelled; if one ends by itself nobody else would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._scheduler.fail(error)

    # --- a step ------------------------------------------------------------------------------------------------------

    def step_began(self) -> None:
        self._engines = members(self._p.engine)
        self._ledger = self._p.machine.ledger.snapshot()
        self._watcher.take()

    def step_ended(self, step: int, times: StepTimes, groups: Sequence[Group], meter: RolloutMeter) -> dict[str, float]:
        """The step's metrics. ``meter``: of the episodes that ended in it."""
        engines, ledger = members(self._p.engine), self._p.machine.ledger.snapshot()
        tokens = StepTokens(
            generated=sum(s.generated_tokens for s in engines) - sum(s.generated_tokens for s in self._engines),
            trained=sum(m.generated_tokens for g in groups for m in g.members),
            ended=_tokens(ledger) - _tokens(self._ledger),
        )
        looks = self._watcher.take()
        shared = self.learner_threads > 0
        work = step_work(times, self._engines, engines, tokens, looks, shared=shared)
        self._total += work.seconds
        self._ideal_s, self._wall_s = self._ideal_s + work.ideal_s, self._wall_s + work.wall_s
        self._load_s = max(new.load_s - old.load_s for old, new in zip(self._engines, engines, strict=True))
        decision = self._tuner.observe(self._facts(times, groups, meter, work, tokens, ledger))
        pace = self._p.machine.pace
        self._decision = decision
        if self._auto and self._tuner.certain and decision.pace != pace:
            self._change(step, pace, decision)
        pace = self._p.machine.pace
        return (
            work.values
            | decision.values()
            | {
                "engine/fill": looks.fill,
                "rollout/goodput": goodput(ledger.accounts[LedgerState.TRAINED].tokens, _tokens(ledger)),
                "rollout/alpha": pace.alpha,
                "rollout/extra_groups": float(pace.extra_groups),
                "rollout/extra_members": float(pace.extra_members),
            }
        )

    def _facts(
        self,
        times: StepTimes,
        groups: Sequence[Group],
        meter: RolloutMeter,
        work: StepWork,
        tokens: StepTokens,
        ledger: LedgerSnapshot,
    ) -> StepFacts:
        samples = sum(len(g.members) for g in groups)
        busy_s = sum(new.busy_s for new in members(self._p.engine)) - sum(old.busy_s for old in self._engines)
        filtered = _count(ledger, LedgerState.FILTERED) - _count(self._ledger, LedgerState.FILTERED)
        return StepFacts(
            samples=samples,
            groups=len(groups),
            generate_s=busy_s / tokens.generated * tokens.trained if tokens.generated else busy_s,
            learner_s=times.learner_s,
            sync_s=self._load_s,
            longest_s=meter.longest_s,
            voids=meter.voids,
            ended=meter.counted,
            filtered_groups=round(filtered / self._p.recipe.rollout.group_size),
            env_s=tuple(meter.latency_s),
        )

    def _look(self) -> Look:
        engines = members(self._p.engine)
        running = sum(s.running for s in engines)
        resident = self._p.engine.stats()
        return Look(
            idle=sum(not s.running for s in engines),
            running=running,
            slots=sum(s.slots for s in engines),
            in_environment=max(0, self._scheduler.running - resident.running - resident.waiting),
            learning=self._learning(),
            held_back=self._p.slots.free > 0,
        )

    # --- what follows ------------------------------------------------------------------------------------------------

    def _change(self, step: int, before: Pace, decision: Decision) -> None:
        self._set(decision.pace)
        line = f"step {step}: {_difference(before, decision.pace)}, because {'; '.join(decision.advice.reasons)}"
        log.info("%s", line)
        self._p.events.tuned(step, decision.pace, line)
        self._p.display.note(line)

    def _set(self, pace: Pace) -> None:
        self._p.machine.retune(pace)
        self.learner_threads = self._all_threads() if pace.alpha == 0 else 0
        self._scheduler.fill()

    def _all_threads(self) -> int:
        """At α = 0 the engines stand still while the learner works: a processor they share is all the learner's."""
        on_cpu = {*self._p.recipe.engine.devices, self._p.recipe.learner.device} == {"cpu"}
        return len(os.sched_getaffinity(0)) if on_cpu else 0

    def work(self) -> dict[str, float]:
        """Roofline and bubble of all steps so far together."""
        if not self._wall_s:
            return {}
        bubble = self._total.bubble()
        values = {"roofline/efficiency": efficiency(self._ideal_s, self._wall_s), "bubble/total": sum(bubble.values())}
        return values | {f"bubble/{cause}": share for cause, share in bubble.items()}

    def advice(self) -> str:
        return str(self._decision) if self._decision is not None else ""


def _bounds(parts: Parts) -> Bounds:
    rollout = parts.recipe.rollout
    return Bounds(
        alpha=rollout.alpha,
        group_size=rollout.group_size,
        groups_per_batch=rollout.groups_per_batch,
        extra_groups=rollout.extra_groups,
        extra_members=rollout.extra_members,
        order=rollout.order,
        engines=parts.recipe.engine.count,
        epochs=parts.recipe.learner.epochs,
    )


def _tokens(ledger: LedgerSnapshot) -> int:
    """Of all training episodes that have ended."""
    return sum(a.tokens for state, a in ledger.accounts.items() if state is not LedgerState.EVALUATED)


def _count(ledger: LedgerSnapshot, state: LedgerState) -> int:
    return ledger.accounts[state].episodes


def _difference(before: Pace, after: Pace) -> str:
    names = {"alpha": "α", "extra_groups": "extra groups", "extra_members": "extra members"}
    changes = [
        f"{label} {getattr(before, name):g} → {getattr(after, name):g}"
        for name, label in names.items()
        if getattr(before, name) != getattr(after, name)
    ]
    return ", ".join(changes)
