"""Who opens environments is told which tasks come next, a batch ahead, and before any of them is opened."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.errors import PlatformUnavailable
from rock.domain.outcome import Completed
from rock.sdk import EnvView
from roll_core.rollout.backoff import OutageGuard
from roll_core.rollout.machine import MachineSettings, RolloutMachine
from roll_core.rollout.reuse import ReusedSessions
from roll_core.rollout.scheduler import Scheduler, Slots
from roll_core.rollout.sessions import SdkSessions
from roll_core.rollout.tasks import TaskQueue
from roll_core.rollout.work import EpisodeSpec
from roll_core.types import Trajectory

TASKS = [f"t{number}" for number in range(12)]


@given(st.integers(0, 50), st.integers(0, 30), st.integers(0, 40), st.sets(st.sampled_from(TASKS), max_size=5))
def test_what_is_said_to_come_comes(seed: int, position: int, count: int, left_out: set[str]) -> None:
    queue, same = TaskQueue(TASKS, seed, position), TaskQueue(TASKS, seed, position)
    for task in left_out:
        queue.leave_out(task)
    said = queue.coming(count)
    taken = [same.take()[0] for _ in range(count)]
    assert said == tuple(task for task in dict.fromkeys(taken) if task not in left_out)
    assert queue.position == position


class Books:
    """A session factory, and the player of episodes in it that end at once."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.sessions: Any = ReusedSessions(self, 1)  # type: ignore[arg-type] # passes it on

    def coming(self, tasks: Sequence[str]) -> None:
        self.log.append(("coming", *tasks))

    def episode(self, spec: EpisodeSpec) -> Any:
        books = self

        class Episode:
            def __init__(self) -> None:
                self.spec = spec

            async def play(self) -> Trajectory:
                books.log.append(("open", spec.task))
                outcome = Completed(float(spec.id[-1] in "02468"), True)
                return Trajectory(
                    id=spec.id, group_id=spec.group_id, env="e", task=spec.task, seed=spec.seed,
                    init_version=spec.init_version, turns=(), outcome=outcome,
                )  # fmt: skip

        return Episode()


def test_tasks_are_told_a_batch_ahead_and_once_a_group() -> None:
    books = Books()

    async def main() -> None:
        settings = MachineSettings(alpha=0, group_size=2, groups_per_batch=3)
        guard = OutageGuard(free=2, rng=random.Random(0))
        machine = RolloutMachine(settings, TaskQueue(TASKS, 0))
        scheduler = Scheduler(machine, books, Slots(2), guard, outage_s=60, on_booked=lambda _: None)  # type: ignore[arg-type]
        scheduler.resume()
        groups = await scheduler.next_batch()
        scheduler.carry_out(machine.trained(groups))
        await scheduler.close()

    asyncio.run(main())
    told = [entry[1:] for entry in books.log if entry[0] == "coming"]
    order = TaskQueue(TASKS, 0).coming(len(TASKS))
    assert told == [order[1:4], order[2:5], order[3:6]]
    for task in order[1:3]:
        first = next(i for i, entry in enumerate(books.log) if entry[0] == "coming" and task in entry)
        assert first < books.log.index(("open", task))


class Platform:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answer = asyncio.Event()

    async def envs(self) -> Sequence[EnvView]:
        plain = EnvView(name="e", version="1", description="d", recovery="none", built=True)
        judged = plain.model_copy(update={"name": "ej", "judge": "j"})
        return [plain, judged, plain.model_copy(update={"name": "j", "task_images": 2})]

    async def prefetch(self, env: str, tasks: Sequence[str]) -> int:
        self.asked.append((env, *tasks))
        await self.answer.wait()
        raise PlatformUnavailable("it is away")


def test_the_platform_is_asked_once_for_each_and_need_not_answer() -> None:
    async def main() -> None:
        platform = Platform()
        sessions = SdkSessions(platform, "ej", run_id="", wait_s=1, ttl_s=1, reset_s=1, step_s=1, recovery_s=1)  # type: ignore[arg-type]
        sessions.coming(["a", "b"])
        await asyncio.sleep(0)
        sessions.coming(["b", "c"])  # left to the next one: a request is under way
        platform.answer.set()
        assert sessions._asking is not None
        await asyncio.wait([sessions._asking])
        sessions.coming(["b", "c", "d"])
        await asyncio.sleep(0)
        assert platform.asked == [("ej", "a", "b"), ("ej", "c", "d")]
        await sessions.close()

    asyncio.run(main())


def test_where_no_task_has_an_image_of_its_own_the_platform_is_not_asked() -> None:
    async def main() -> None:
        platform = Platform()
        sessions = SdkSessions(platform, "e", run_id="", wait_s=1, ttl_s=1, reset_s=1, step_s=1, recovery_s=1)  # type: ignore[arg-type]
        for task in "abc":
            sessions.coming([task])
            await asyncio.sleep(0)
        assert platform.asked == []
        await sessions.close()

    asyncio.run(main())
