"""Sandboxes that are lost under an episode: the caller waits a little longer, and sees the one episode all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import pytest

from rock.runtimes.fake import ToyEnv
from rock.sdk import Diverged, EnvironmentError, EnvSession, InvalidAction, Rock, RockSync, SandboxLost  # noqa: A004
from rock.sdk import lease as lease_module

Serving = Callable[..., AbstractAsyncContextManager[Any]]
Sabotage = Callable[[Any, EnvSession], Awaitable[None]]


async def until(condition: Callable[[], Any], within_s: float = 15.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return found


async def until_event(rock: Rock, kind: str, within_s: float = 15.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while kind not in {event.kind for event in await rock.events()}:
        assert asyncio.get_running_loop().time() < deadline, f"no {kind} within {within_s} s"
        await asyncio.sleep(0.02)


async def kill(served: Any, env: EnvSession) -> None:
    await served.runtime.kill(env.sandbox_id)


async def remove(served: Any, env: EnvSession) -> None:
    await served.runtime.remove(env.sandbox_id)


async def freeze(served: Any, env: EnvSession) -> None:
    await served.runtime.freeze(env.sandbox_id)


async def one_step(env: EnvSession, number: int) -> None:
    assert (await env.step(f"go {number}")).observation == f"step {number}: go {number}"


@pytest.mark.parametrize("sabotage", [kill, remove, freeze])
def test_the_episode_goes_on_where_it_was(serving: Serving, sabotage: Sabotage) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9", seed=3) as env:
            await env.reset()
            for number in (1, 2, 3):
                await one_step(env, number)
            lost, lease = env.sandbox_id, env.lease
            await sabotage(served, env)
            await one_step(env, 4)
            assert await env.call("state") == {"count": 4}
            assert env.sandbox_id != lost
            assert (env.lease.id, env.lease.token) == (lease.id, lease.token)
            assert env.lease.epoch > lease.epoch
            report = env.recoveries[0]
            assert (report.old_sandbox, report.new_sandbox, report.steps) == (lost, env.sandbox_id, 3)
            assert report.verdict == "resumed"
            while not (step := await env.step("end")).terminated:
                pass
            assert step.reward == 1.0
            assert len(env.recoveries) == 1
            events = await rock.events()
            kinds = [event.kind for event in events]
            told = "\n".join(f"{event.kind} {event.detail}" for event in reversed(events))
            assert kinds.count("lease.recovering") == kinds.count("lease.rebound") == 1, told
            assert "lease.lost" not in kinds

            await until_event(rock, "lease.recovered")

    asyncio.run(main())


def test_a_step_under_way_is_done_once_in_the_other_sandbox(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9", step_timeout_s=60) as env:
            await env.reset()
            await one_step(env, 1)
            served.runtime.faults.step_delay_s = 30
            pending = asyncio.create_task(env.step("go 2"))
            await asyncio.wait({pending}, timeout=0.1)
            served.runtime.faults.step_delay_s = 0
            await kill(served, env)
            assert (await pending).observation == "step 2: go 2"
            assert await env.call("state") == {"count": 2}

    asyncio.run(main())


def test_an_idle_session_recovers_before_anybody_calls(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            await env.reset()
            await one_step(env, 1)
            await kill(served, env)
            await until(lambda: env.recoveries)
            assert env.recoveries[0].steps == 1
            await one_step(env, 2)
            assert len(env.recoveries) == 1

    asyncio.run(main())


def test_the_death_of_the_environments_process_alone_is_a_loss_too(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:

            class DiesOnce(ToyEnv):
                def reset(self, task: str, seed: int, options: dict[str, Any]) -> Any:
                    served.runtime.faults.env_dies_after_steps = None
                    return super().reset(task, seed, options)

            served.runtime.env_factory = DiesOnce
            async with rock.env("toy", task="9") as env:
                await env.reset()
                await one_step(env, 1)
                served.runtime.faults.env_dies_after_steps = 1
                await one_step(env, 2)
                assert [report.steps for report in env.recoveries] == [1]

    asyncio.run(main())


def test_a_reset_whose_sandbox_dies_is_done_in_another(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            served.runtime.faults.reset_delay_s = 30
            pending = asyncio.create_task(env.reset())
            await asyncio.wait({pending}, timeout=0.1)
            served.runtime.faults.reset_delay_s = 0
            await kill(served, env)
            assert (await pending).observation.startswith("task 9")
            assert env.recoveries[0].steps == 0

    asyncio.run(main())


def test_an_environment_that_is_not_deterministic_diverges_and_says_where(serving: Serving) -> None:
    made = 0

    class Moody(ToyEnv):
        def __init__(self) -> None:
            nonlocal made
            made += 1
            self.mood = made

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return (f"{observation} mood {self.mood}" if self.count == 2 else observation, *rest)

    async def main() -> None:
        async with serving() as served, served.client() as rock:
            served.runtime.env_factory = Moody
            async with rock.env("toy", task="9") as env:
                await env.reset()
                for _ in range(3):
                    await env.step("go")
                await kill(served, env)
                for _ in range(2):
                    with pytest.raises(Diverged, match="step 2 of 3"):
                        await env.step("go")
                assert env.recoveries[0].verdict == "diverged"
                await env.reset()  # another episode is another matter
                await one_step(env, 1)

    asyncio.run(main())


def test_a_task_that_kills_every_sandbox_ends_by_the_platforms_limit(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            await env.reset()
            await env.step("go")
            served.runtime.faults.die_after_steps = 1
            with pytest.raises(SandboxLost, match="more than 3 sandboxes"):
                await env.step("go")
            with pytest.raises(SandboxLost):
                await env.step("go")
            assert await rock.leases() == []

    asyncio.run(main())


def test_with_recovery_none_the_loss_ends_the_episode(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", recovery="none") as env:
            await env.reset()
            await kill(served, env)
            with pytest.raises(SandboxLost):
                await env.step("go")
            assert env.recoveries == []

    asyncio.run(main())


def test_no_other_sandbox_within_the_time_is_a_loss_with_its_reason(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            async with rock.env("toy", recovery_timeout_s=1.0) as env:
                await env.reset()
                served.runtime.faults.start_error = "the disk is full"
                pool = next(iter(served.platform.node._fleet.pools.values()))
                while pool.ready:
                    await kill(served, type("S", (), {"sandbox_id": pool.ready[0].id}))
                    await asyncio.sleep(0.05)
                begin = time.monotonic()
                await kill(served, env)
                with pytest.raises(SandboxLost):
                    await env.step("go")
                assert time.monotonic() - begin < 8
            assert await rock.leases() == []

    asyncio.run(main())


def test_a_call_is_made_again_unless_told_otherwise(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            await env.reset()
            await one_step(env, 1)
            await kill(served, env)
            assert await env.call("state") == {"count": 1}
            await kill(served, env)
            with suppress(SandboxLost):  # unless it was replaced before
                await env.call("state", recover=False)
            await one_step(env, 2)

    asyncio.run(main())


def test_what_ends_or_spoils_an_episode_does_so_after_a_loss_too(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="2") as env:
            await env.reset()
            await env.step("go")
            assert (await env.step("go")).terminated
            await kill(served, env)
            with pytest.raises(InvalidAction, match="over"):
                await env.step("go")
            await env.reset(task="9")
            with pytest.raises(EnvironmentError):
                await env.step("raise")
            await kill(served, env)
            with pytest.raises(EnvironmentError):
                await env.step("go")

    asyncio.run(main())


def test_closing_does_not_wait_for_a_recovery_or_a_step(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            for recovering in (False, True):
                env = rock.env("toy", step_timeout_s=60)
                await env.open()
                await env.reset()
                served.runtime.faults.step_delay_s = 30
                served.runtime.faults.start_delay_s = 30 if recovering else 0
                pending = asyncio.create_task(env.step("go"))
                await asyncio.wait({pending}, timeout=0.1)
                if recovering:
                    for _ in range(2):
                        await kill(served, env)
                        await asyncio.sleep(0.2)
                sandbox = env.sandbox_id
                pending.cancel()
                begin = time.monotonic()
                await env.close()
                assert time.monotonic() - begin < 1
                await until(lambda: served.platform.control.leases.views() == [])
                served.runtime.faults.start_delay_s = 0
                await until(lambda sandbox=sandbox: sandbox not in served.platform.node._fleet.records)

    asyncio.run(main())


def test_a_slow_reset_is_raced_by_a_second_sandbox(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            async with rock.env("toy", task="9", hedge_reset=True, reset_timeout_s=2.0) as env:
                slow = env.sandbox_id
                served.runtime.faults.reset_delay_s = 30
                pending = asyncio.create_task(env.reset(timeout_s=20.0))
                await asyncio.wait({pending}, timeout=0.1)
                served.runtime.faults.reset_delay_s = 0
                assert (await pending).observation.startswith("task 9")
                assert env.sandbox_id != slow
                await one_step(env, 1)
                await until(lambda: len(served.platform.control.leases.views()) == 1)
                times = rock._reset_times["toy"]
                assert (times.hedges, times.wins) == (1, 1)
            assert await rock.leases() == []

    asyncio.run(main())


def test_the_synchronous_session_recovers_as_well(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served:

            def play() -> int:
                with RockSync(served.url) as rock, rock.env("toy", task="9") as env:
                    env.reset()
                    env.step("go")
                    asyncio.run_coroutine_threadsafe(served.runtime.kill(env.sandbox_id), loop).result()
                    assert env.step("go").observation == "step 2: go"
                    return len(env.recoveries)

            loop = asyncio.get_running_loop()
            assert await asyncio.to_thread(play) == 1

    asyncio.run(main())


def test_a_vain_connection_to_the_lost_sandbox_that_ends_late_is_no_loss_of_the_other(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a connection has the session connect anew, and the node may take seconds to refuse; by then the
    lease may have gone on to the other sandbox."""

    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9", ttl_s=3.0) as env:
            await env.reset()
            await one_step(env, 1)
            first, reach = env.lease, lease_module.reach
            refused_late = asyncio.Event()

            async def reach_late(lease: Any) -> Any:
                if lease.epoch == first.epoch:
                    await until(lambda: env.lease.epoch > first.epoch)
                    refused_late.set()
                    raise SandboxLost("nobody listens there any more")
                return await reach(lease)

            monkeypatch.setattr(lease_module, "reach", reach_late)
            await kill(served, env)
            await until(lambda: env.recoveries)
            assert refused_late.is_set()
            await one_step(env, 2)
            events = await rock.events()
            told = "\n".join(f"{event.kind} {event.detail}" for event in reversed(events))
            assert [event.kind for event in events].count("lease.recovering") == len(env.recoveries) == 1, told

    asyncio.run(main())


def test_a_call_that_is_silent_goes_on_asking_until_it_is_answered(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was cut off ends no connection, and the platform gives it up only after several seconds."""
    monkeypatch.setattr(lease_module, "SILENT_S", 0.1)
    monkeypatch.setattr(lease_module, "SILENT_ASK_S", 0.05)

    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9", ttl_s=600) as env:
            await env.reset()
            heartbeat, asked = served.platform.control.leases.heartbeat, 0

            def counted(lease_id: str) -> Any:
                nonlocal asked
                asked += 1
                return heartbeat(lease_id)

            monkeypatch.setattr(served.platform.control.leases, "heartbeat", counted)
            served.runtime.faults.step_delay_s = 60.0
            pending = asyncio.create_task(env.step("go 1"))
            await until(lambda: asked >= 5)
            assert not pending.done()
            pending.cancel()
            await asyncio.wait({pending})
            assert env._seat.held._silent_at is None

    asyncio.run(main())


def test_a_lease_that_is_past_the_epoch_is_answered_at_once(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            await env.reset()
            await kill(served, env)
            await until(lambda: env.recoveries)
            raw: Rock = rock
            from rock.wire.models import LeaseView, RecoverRequest

            for _ in range(2):
                view = await raw._transport.request(
                    "POST", f"leases/{env.lease.id}/recover", body=RecoverRequest(epoch=1), kind=LeaseView
                )
                assert (view.epoch, view.sandbox_id) == (env.lease.epoch, env.sandbox_id)
            assert len(env.recoveries) == 1

    asyncio.run(main())
