"""How good the policy is: the success rate on held-out tasks with fixed seeds, and its interval.

A void episode says nothing about the policy: it is played again, never counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from rock.domain.outcome import LedgerState
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.episode import Player
from roll_core.rollout.machine import RolloutMachine
from roll_core.rollout.scheduler import Slots, play_measured
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking, EpisodeSpec
from roll_core.training.metrics import Rate, succeeded
from roll_core.training.parts import Parts
from roll_core.training.watchdog import Watch


async def evaluate(
    tasks: Sequence[str],
    count: int,
    seed: int,
    player: Player,
    machine: RolloutMachine,
    slots: Slots,
    guard: OutageGuard,
    *,
    outage_s: float,
    on_booked: Callable[[Booking], None],
) -> Rate:
    """Play ``count`` episodes under the engine's present weights; the same arguments give the same episodes."""
    queue = TaskQueue(tasks, seed)

    def spec_maker(index: int) -> Callable[[], EpisodeSpec]:
        task, env_seed = queue.take()
        sampling_seed = random.Random(f"{seed}/evaluation/{index}").getrandbits(31)

        def new_spec() -> EpisodeSpec:
            episode_id = machine.new_id()
            return EpisodeSpec(episode_id, "", task, env_seed, sampling_seed, machine.engine_version)

        return new_spec

    makers = [spec_maker(i) for i in range(count)]
    played = await play_measured(makers, player, machine, slots, guard, outage_s=outage_s, on_booked=on_booked)
    return Rate.of(sum(succeeded(t) for t in played), len(played))


class Evaluator:
    """Evaluates as the run's recipe says, and tells everyone."""

    def __init__(self, parts: Parts, state: Callable[[], str]) -> None:
        self._p = parts
        self._state = state

    async def measure(self, when: str, step: int) -> Rate:
        """``when``: for people. ``step``: learner steps done. Raises NoProgress when no episode ends any more."""
        p, recipe = self._p, self._p.recipe
        evaluation = recipe.evaluation
        await p.reporter.status("evaluating")
        p.display.phase(f"evaluation {when}", evaluation.tasks)
        sampling = replace(p.player.sampling, temperature=evaluation.temperature, top_p=1.0)
        watch = Watch(f"an episode of the evaluation {when}", recipe.training.batch_deadline_s, self._state)
        done = 0

        def booked(booking: Booking) -> None:
            nonlocal done
            if booking.state is LedgerState.EVALUATED:
                watch.progressed()
                done += 1
            p.display.advance(done)
            p.events.booked(booking)
            p.reporter.episode(booking, phase="eval", split=recipe.env.eval_split)

        evaluating = evaluate(
            p.eval_tasks,
            evaluation.tasks,
            evaluation.seed,
            replace(p.player, sampling=sampling, limits=replace(p.player.limits, max_invalid_turns=0)),
            p.machine,
            p.slots,
            p.guard,
            outage_s=recipe.platform.outage_s,
            on_booked=booked,
        )
        rate = await watch.over(evaluating)
        p.reporter.metrics(step, {"eval/success": rate.rate, "eval/low": rate.low, "eval/high": rate.high})
        p.display.note(f"success {when}: {rate}")
        p.reporter.check()
        return rate
