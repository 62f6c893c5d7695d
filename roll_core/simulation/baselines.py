"""What the schedulers are measured against, written out plainly: barriers and whole batches.

Each plays the very samples of the scheduler it is compared with (same seeds, lengths, latencies, faults) on the same
engines behind the same router; only the order of waiting differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from roll_core.engines.base import SamplingParams
from roll_core.engines.router import Router
from roll_core.rollout.clock import now_s
from roll_core.rollout.groups import has_signal
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import EpisodeSpec
from roll_core.simulation.clock import run_virtual
from roll_core.simulation.engine import SimulatedEngine
from roll_core.simulation.environment import SimulatedPrompter, SimulatedSessions
from roll_core.simulation.run import make_player
from roll_core.simulation.workload import Workload
from roll_core.types import Group, Trajectory, Weights


class _Bench:
    """Engines, environments, and the specs that the production machine would start, in its order."""

    def __init__(self, workload: Workload, seed: int, *, steps: int = 1) -> None:
        self.workload = workload
        self.engines = [SimulatedEngine(workload.engine, workload.length_of) for _ in range(workload.engines)]
        self.router = Router(self.engines, balance=False)
        self.sessions = SimulatedSessions(workload.environment)
        self.player = make_player(self.router, self.sessions, workload)
        settings = MachineSettings(
            alpha=float(steps),
            group_size=workload.group_size,
            groups_per_batch=workload.groups,
            filter_zero_variance=False,
            seed=seed,
        )
        self._machine = RolloutMachine(settings, TaskQueue(["task"], seed))

    def specs(self) -> list[EpisodeSpec]:
        """The next batch."""
        found = [self._machine.next_start() for _ in range(self.workload.samples)]
        return [spec for spec in found if spec is not None]


def barrier_s(workload: Workload, seed: int) -> float:
    """A batch of episodes that all take a turn, then all wait for the slowest (the usual loop over a vector of
    environments)."""

    async def main() -> float:
        bench = _Bench(workload, seed)
        await bench.router.start()
        specs = bench.specs()
        contexts = [bench.sessions.open(spec.task, spec.seed) for spec in specs]
        sessions = [await context.__aenter__() for context in contexts]
        prompts: list[list[int]] = [[spec.seed] for spec in specs]
        for turn in range(workload.environment.turns):
            requests = [_ask(bench.router, spec, turn, prompts[i]) for i, spec in enumerate(specs)]
            for prompt, generation in zip(prompts, await asyncio.gather(*requests), strict=True):
                prompt += [*generation.token_ids, 0]
            await asyncio.gather(*(session.step("") for session in sessions))
        return now_s()

    return run_virtual(main())


def turn_seed(spec: EpisodeSpec, turn: int) -> int:
    """The seed of an episode's sampling at this turn."""
    return (spec.sampling_seed + 0x9E3779B1 * turn) % 2**31


def _ask(router: Router, spec: EpisodeSpec, turn: int, prompt: list[int]) -> Coroutine[Any, Any, Any]:
    """The request that an episode would make at this turn (see ``Episode._generate``)."""
    seed = turn_seed(spec, turn)
    return router.generate(f"{spec.id}/{turn}", prompt, SamplingParams(1 << 40, seed=seed), session=spec.id)


def rounds_s(workload: Workload, seed: int) -> float:
    """Whole batches until enough groups have signal: generate all, then score all, then filter."""

    async def main() -> float:
        bench = _Bench(workload, seed, steps=1000)
        await bench.router.start()
        kept = 0
        while kept < workload.groups:
            specs = bench.specs()
            await asyncio.gather(*(_ask(bench.router, spec, 0, [spec.seed]) for spec in specs))
            kept += sum(map(has_signal, await _scored(bench, specs)))
        return now_s()

    return run_virtual(main())


async def _scored(bench: _Bench, specs: Sequence[EpisodeSpec]) -> list[Group]:
    """Rewards, all at once: the generation is over."""
    instantly = make_player(_Silent(), bench.sessions, bench.workload)  # type: ignore[arg-type]
    played = await asyncio.gather(*(instantly.episode(spec).play() for spec in specs))
    members: dict[str, list[Trajectory]] = {}
    for trajectory in played:
        members.setdefault(trajectory.group_id, []).append(trajectory)
    return [Group(name, "task", tuple(group)) for name, group in members.items()]


class _Silent:
    """An engine that has nothing left to say."""

    async def generate(self, *_: Any, **__: Any) -> Any:
        from roll_core.simulation.tokens import generation

        return generation([(0, 1)], "stop")

    def release(self, session: str) -> None:
        return None


def synchronous_s(workload: Workload, seed: int, steps: int, *, barrier: bool = False) -> float:
    """Seconds per step of the synchronous loop: play a batch to its end on all workers, train it on all workers, load
    the weights, and so on. Episodes wait for each other only at the end of the batch."""

    async def main() -> float:
        bench = _Bench(workload, seed, steps=steps)
        await bench.router.start()
        for step in range(steps):
            await asyncio.gather(*(bench.player.episode(spec).play() for spec in bench.specs()))
            await asyncio.sleep(workload.samples * workload.train_s / workload.engines)
            await bench.router.load_weights(Weights(step + 1, {}))
        return now_s() / steps

    return run_virtual(main())


__all__ = ["SimulatedPrompter", "barrier_s", "rounds_s", "synchronous_s", "turn_seed"]
