"""How good the policy is: the success rate on held-out tasks with fixed seeds, and its interval.

A void episode says nothing about the policy: it is played again, never counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.episode import Player
from roll_core.rollout.machine import RolloutMachine
from roll_core.rollout.scheduler import Slots, play_measured
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import Booking, EpisodeSpec
from roll_core.training.metrics import Rate, succeeded


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
