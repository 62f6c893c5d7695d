"""Sessions whose sandbox is kept every so many steps: lost, the episode goes on from what was kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rock.domain.errors import Conflict, StaleEpoch, StorageError
from rock.runtimes.fake_env import DiskEnv, ToyEnv
from rock.sdk import Diverged, EnvSession, InvalidRequest, LeaseRequest
from rock.wire.models import EnvView, PoolSize, SandboxSpec, SnapshotRequest

Serving = Callable[..., AbstractAsyncContextManager[Any]]


class DiskCatalog:
    """The toy with its state in files."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.read_only = read_only

    def names(self) -> tuple[str, ...]:
        return ("toy",)

    def view(self, name: str) -> EnvView:
        return EnvView(name=name, version="1", description="", recovery="snapshot", built=True, snapshot_every=3)

    def tasks(self, name: str, split: str) -> tuple[str, ...]:
        return ("9",)

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(image="toy:1", env=name, entry="toy:Env", read_only=self.read_only)

    def pool_size(self, name: str) -> PoolSize:
        return PoolSize(ready=1)


class StampedEnv(DiskEnv):
    """What it says depends on the very sandbox a step was first made in: only its files can bring that back."""

    made = 0

    def __init__(self) -> None:
        StampedEnv.made += 1
        self.mine = StampedEnv.made

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, over, cut, info = super().step(action)
        self.disk["stamps"] = [*self.disk.get("stamps", []), self.mine if self.count <= 3 else 0]
        return f"{observation} {self.disk['stamps']}", reward, over, cut, info


async def until(condition: Callable[[], Any], within_s: float = 15.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return found


async def kept(served: Any, env: EnvSession, step: int) -> str:
    """The name of the snapshot after ``step``, once it is made."""

    def made() -> str:
        lease = next(one for one in served.platform.control.leases.views() if one.id == env.lease.id)
        latest = lease.latest_snapshot
        return latest.name if latest is not None and latest.step == step else ""

    return str(await until(made))


async def steps(env: EnvSession, *numbers: int) -> list[Any]:
    return [(await env.step(f"go {number}")).observation for number in numbers]


def test_the_episode_goes_on_from_the_snapshot_and_only_what_came_since_is_replayed(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = StampedEnv
            async with rock.env("toy", task="9") as env:
                await env.reset()
                before = await steps(env, 1, 2, 3, 4, 5)
                lost = env.sandbox_id
                await served.runtime.kill(lost)
                (after,) = await steps(env, 6)
                assert after.startswith("step 6")
                assert before[-1].removesuffix("]").split("[")[1] in after  # the stamps of a process that is no more
                (report,) = env.recoveries
                assert (report.verdict, report.from_step, report.steps) == ("resumed", 3, 2)
                assert env.lease.snapshot.endswith("-1-1")
                await kept(served, env, 6)
                await served.runtime.kill(env.sandbox_id)  # a second time, from the snapshot of a snapshot
                await steps(env, 7)
                assert (env.recoveries[1].from_step, env.recoveries[1].steps) == (6, 0)
                assert await env.call("state") == {"count": 7}
            await until(lambda: not served.runtime.kept)

    asyncio.run(main())


def test_one_snapshot_is_kept_and_none_when_the_lease_has_ended(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            async with rock.env("toy", task="50", snapshot_every=2) as env:
                await env.reset()
                await steps(env, *range(1, 7))
                name = await kept(served, env, 6)
                await until(lambda: list(served.runtime.kept) == [name])
                await env.reset()  # another episode: the state of the one before is of no use
                await until(lambda: not served.runtime.kept)
                await steps(env, 1, 2)
                assert (await kept(served, env, 2)).endswith("-1-4")
            await until(lambda: not served.runtime.kept)
            assert await rock.leases() == []

    asyncio.run(main())


def test_the_caller_of_the_step_does_not_wait_for_the_snapshot_but_the_next_step_does(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            async with rock.env("toy", task="9", snapshot_every=1) as env:
                await env.reset()
                served.runtime.faults.snapshot_delay_s = 0.4
                loop = asyncio.get_running_loop()
                began = loop.time()
                await steps(env, 1)
                assert loop.time() - began < 0.3
                await steps(env, 2)
                assert loop.time() - began >= 0.4
                served.runtime.faults.snapshot_delay_s = 0.0

    asyncio.run(main())


def test_what_does_not_work_out_costs_a_longer_replay_and_nothing_else(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            for trouble in ("snapshot_error", "disk_used"):
                async with rock.env("toy", task="9", snapshot_every=2) as env:
                    await env.reset()
                    setattr(served.runtime.faults, trouble, 0.99 if trouble == "disk_used" else "no")
                    await steps(env, 1, 2, 3)
                    await served.runtime.kill(env.sandbox_id)
                    await steps(env, 4)
                    setattr(served.runtime.faults, trouble, type(getattr(served.runtime.faults, trouble))())
                    (report,) = env.recoveries
                    assert (report.verdict, report.from_step, report.steps) == ("resumed", 0, 3)
                    await steps(env, 5, 6)  # due again: twice as far from the failure
                    assert await kept(served, env, 6)

    asyncio.run(main())


def test_a_snapshot_that_is_gone_is_made_up_for_by_a_replay_from_the_start(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            async with rock.env("toy", task="9") as env:
                await env.reset()
                await steps(env, 1, 2, 3)
                await kept(served, env, 3)
                served.runtime.kept.clear()
                await served.runtime.kill(env.sandbox_id)
                await steps(env, 4)
                assert (env.recoveries[0].from_step, env.recoveries[0].steps) == (0, 3)
                assert env.lease.snapshot == ""

    asyncio.run(main())


def test_a_snapshot_whose_answer_got_lost_is_never_gone_on_from(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            async with rock.env("toy", task="9", snapshot_every=0) as env:
                await env.reset()
                await steps(env, 1, 2)
                leases = served.platform.control.leases
                await leases.snapshots.take(env.lease.id, SnapshotRequest(epoch=1, number=1, step=2))
                await steps(env, 3)
                await served.runtime.kill(env.sandbox_id)
                await steps(env, 4)
                assert await env.call("state") == {"count": 4}
                assert env.lease.snapshot == ""
                assert (env.recoveries[-1].from_step, env.recoveries[-1].steps) == (0, 3)
            await until(lambda: not served.runtime.kept)

    asyncio.run(main())


def test_an_environment_that_is_not_where_it_was_diverges(serving: Serving) -> None:
    class Forgetful(DiskEnv):
        def restore(self, task: str, seed: int, options: dict[str, Any], state: Any) -> None:
            self.length, self.count = 9, 0

    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = Forgetful
            async with rock.env("toy", task="9") as env:
                await env.reset()
                await steps(env, 1, 2, 3)
                await kept(served, env, 3)
                await served.runtime.kill(env.sandbox_id)
                with pytest.raises(Diverged, match="returns another state"):
                    await steps(env, 4)

    asyncio.run(main())


def test_who_cannot_be_kept_is_refused_at_the_beginning_saying_why(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = ToyEnv
            with pytest.raises(InvalidRequest, match="has no checkpoint"):
                await rock.env("toy").open()
            assert await rock.leases() == []
        async with serving(catalog=DiskCatalog(read_only=True)) as served, served.client() as rock:
            with pytest.raises(InvalidRequest, match="read-only root"):
                await rock.env("toy").open()

    asyncio.run(main())


def test_the_api_takes_a_snapshot_once_and_for_the_present_holder_only(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            lease = await rock.create_lease(LeaseRequest(env="toy"))
            assert (lease.recovery, lease.snapshot_every) == ("snapshot", 3)
            take = served.platform.control.leases.snapshots.take
            served.runtime.faults.snapshot_delay_s = 0.2
            first = SnapshotRequest(epoch=1, number=1, step=3)
            twice = asyncio.gather(take(lease.id, first), take(lease.id, first))
            await asyncio.sleep(0)
            with pytest.raises(Conflict, match="being taken"):
                await take(lease.id, SnapshotRequest(epoch=1, number=2))
            one, other = await twice
            assert one == other == await take(lease.id, first)
            assert list(served.runtime.kept) == [one.name]
            with pytest.raises(StaleEpoch):
                await take(lease.id, SnapshotRequest(epoch=2, number=2))
            served.runtime.faults.disk_used = 0.95
            with pytest.raises(StorageError, match="95% full"):
                await take(lease.id, SnapshotRequest(epoch=1, number=3))
            plain = await rock.create_lease(LeaseRequest(spec=SandboxSpec(image="x")))
            with pytest.raises(InvalidRequest, match="nothing that a snapshot could keep"):
                await take(plain.id, SnapshotRequest(epoch=1, number=1))
            await rock.release_lease(lease.id)
            await until(lambda: not served.runtime.kept)

    asyncio.run(main())


def test_one_that_is_made_too_late_is_removed(serving: Serving) -> None:
    async def main() -> None:
        async with serving(catalog=DiskCatalog()) as served, served.client() as rock:
            served.runtime.env_factory = DiskEnv
            lease = await rock.create_lease(LeaseRequest(env="toy"))
            served.runtime.faults.snapshot_delay_s = 0.3
            taking = asyncio.create_task(
                served.platform.control.leases.snapshots.take(lease.id, SnapshotRequest(epoch=1, number=1))
            )
            await asyncio.wait({taking}, timeout=0.05)
            await rock.release_lease(lease.id)
            await asyncio.wait({taking})
            assert taking.exception() is not None
            await until(lambda: not served.runtime.kept)

    asyncio.run(main())
