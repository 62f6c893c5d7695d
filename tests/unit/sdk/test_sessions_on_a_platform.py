"""Sessions and sandboxes against the real API and node on the fake runtime: what callers get, what is left after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import pytest

from rock.sdk import (
    Conflict,
    DeadlineExceeded,
    EnvironmentError,  # noqa: A004
    EpisodeRecord,
    Fault,
    InvalidAction,
    LeaseExpired,
    LedgerState,
    Limits,
    MetricPoint,
    NotFound,
    Rock,
    RockSync,
    RunCreate,
    RunUpdate,
    SandboxLost,
    Unauthorized,
)
from rock.wire.models import LeaseRequest

Serving = Callable[..., AbstractAsyncContextManager[Any]]


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 10.0) -> Any:
    deadline = asyncio.get_running_loop().time() + within_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return found


def test_an_episode_from_reset_to_its_end(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            async with rock.env("toy", task="3", seed=5) as env:
                observation, info = await env.reset()
                assert (observation, info) == ("task 3 seed 5 step 0", {"length": 3})
                for _ in range(2):
                    step = await env.step("go")
                    assert not step.terminated
                observation, reward, terminated, truncated, info = await env.step("go")
                assert (observation, reward, terminated, truncated) == ("step 3: go", 1.0, True, False)
                assert info == {"success": True}
                with pytest.raises(InvalidAction, match="over"):
                    await env.step("go")
                assert await env.call("state") == {"count": 3}
                with pytest.raises(NotFound):
                    await env.call("nothing")
                assert (await env.reset(task="4")).info == {"length": 4}
                assert [lease.id for lease in await rock.leases()] == [env.lease.id]
            assert await rock.leases() == []
            with pytest.raises(LeaseExpired):
                await env.step("go")

    asyncio.run(main())


def test_acting_before_the_reset_is_the_agents_fault(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy") as env:
            with pytest.raises(InvalidAction) as caught:
                await env.step("go")
            assert caught.value.fault is Fault.AGENT

    asyncio.run(main())


def test_what_the_environment_raises_is_the_environments_fault_until_the_next_reset(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy") as env:
            await env.reset()
            for action in ("raise", "go"):
                with pytest.raises(EnvironmentError) as caught:
                    await env.step(action)
                assert caught.value.fault is Fault.ENVIRONMENT
                assert "told to raise" in caught.value.cause
            with pytest.raises(NotFound):
                await env.reset(task="unknown")
            await env.reset(task="3")
            assert (await env.step("go")).observation == "step 1: go"

    asyncio.run(main())


def test_unknown_environments_are_named(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            with pytest.raises(NotFound, match="'toi'"):
                async with rock.env("toi"):
                    pass

    asyncio.run(main())


def test_a_sandbox_that_dies_fails_the_pending_step_at_once_with_its_evidence(serving: Serving) -> None:
    async def main() -> None:
        async with (
            serving() as served,
            served.client() as rock,
            rock.env("toy", recovery="none", step_timeout_s=60) as env,
        ):
            await env.reset()
            served.runtime.faults.step_delay_s = 30
            pending = asyncio.create_task(env.step("go"))
            await asyncio.wait({pending}, timeout=0.1)
            begin = time.monotonic()
            await served.runtime.kill(env.sandbox_id, 137, oom=True)
            with pytest.raises(SandboxLost) as caught:
                await pending
            assert time.monotonic() - begin < 5
            assert env.sandbox_id in caught.value.message
            assert "137" in caught.value.message
            with pytest.raises(SandboxLost, match="137"):
                await env.step("go")

    asyncio.run(main())


def test_a_frozen_sandbox_is_told_by_the_heartbeat_long_before_the_time_out(serving: Serving) -> None:
    async def main() -> None:
        async with (
            serving() as served,
            served.client() as rock,
            rock.env("toy", recovery="none", ttl_s=1.5, step_timeout_s=60) as env,
        ):
            await env.reset()
            await served.runtime.freeze(env.sandbox_id)
            begin = time.monotonic()
            with pytest.raises(SandboxLost) as caught:
                await env.step("go")
            assert time.monotonic() - begin < 15
            assert "did not answer" in caught.value.message, caught.value.message

    asyncio.run(main())


def test_a_sandbox_removed_by_somebody_else_fails_the_pending_step(serving: Serving) -> None:
    async def main() -> None:
        async with (
            serving() as served,
            served.client() as rock,
            rock.env("toy", recovery="none", ttl_s=1.5, step_timeout_s=60) as env,
        ):
            await env.reset()
            served.runtime.faults.step_delay_s = 30
            pending = asyncio.create_task(env.step("go"))
            await asyncio.wait({pending}, timeout=0.1)
            await rock.remove_sandbox(env.sandbox_id)
            with pytest.raises(SandboxLost):
                await asyncio.wait_for(pending, 15)

    asyncio.run(main())


def test_a_step_that_takes_too_long_may_be_given_again_and_acts_once(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9") as env:
            await env.reset()
            served.runtime.faults.step_delay_s = 0.5
            with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
                await env.step("go", timeout_s=0.05)
            served.runtime.faults.step_delay_s = 0
            assert (await env.step("go", timeout_s=10)).observation == "step 1: go"
            assert await env.call("state") == {"count": 1}

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["waiting for a sandbox", "in a step", "idle"])
def test_a_cancelled_task_leaves_no_lease(serving: Serving, moment: str) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            if moment == "waiting for a sandbox":
                served.runtime.faults.start_delay_s = 0.3
            inside = asyncio.Event()

            async def episode() -> None:
                async with rock.env("toy", ttl_s=600) as env:
                    await env.reset()
                    served.runtime.faults.step_delay_s = 30
                    inside.set()
                    await (env.step("go") if moment == "in a step" else asyncio.Event().wait())

            task = asyncio.create_task(episode())
            if moment == "waiting for a sandbox":
                await asyncio.wait({task}, timeout=0.1)
            else:
                await inside.wait()
            begin = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - begin < 6

            async def nothing_held() -> bool:
                return await rock.leases() == []

            await until(nothing_held)

    asyncio.run(main())


def test_who_gives_up_waiting_leaves_the_queue(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            served.runtime.faults.start_delay_s = 600

            async def waits() -> None:
                async with rock.env("toy", wait_s=300):
                    raise AssertionError("there is none to be had")

            async def queue() -> int:
                return sum(pool.waiting for node in await rock.nodes() for pool in node.pools)

            async def queued() -> bool:
                return await queue() == 2

            async def left() -> bool:
                return await queue() == 0

            tasks = [asyncio.create_task(waits()) for _ in range(2)]
            await until(queued)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await until(left)

    asyncio.run(main())


def test_heartbeats_keep_a_lease_beyond_its_time_to_live(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="9", ttl_s=0.6) as env:
            await env.reset()
            begin = time.monotonic()

            async def two_lives_have_passed() -> bool:
                return time.monotonic() - begin > 1.5

            await until(two_lives_have_passed)
            assert (await env.step("go")).observation == "step 1: go"

    asyncio.run(main())


def test_episodes_go_on_while_the_control_plane_is_away(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy", task="99", ttl_s=0.6) as env:
            await env.reset()
            # As if the platform had gone: every request fails from here on, the sandbox's socket still answers.
            async with Rock("http://127.0.0.1:1", retry_s=0) as nobody:
                kept, env._seat.held.calls.transport = env._seat.held.calls.transport, nobody._transport
                served.platform.control.leases.heartbeat(env.lease.id)
                assert (await env.step("go")).observation == "step 1: go"
                env._seat.held.calls.transport = kept

    asyncio.run(main())


def test_the_gateway_serves_where_the_socket_cannot_be_reached(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            session = rock.env("toy", task="3")
            take = session._seat.held.calls.take

            async def elsewhere(request: LeaseRequest) -> Any:
                lease = await take(request)
                assert lease.endpoint.gateway_port
                return lease.model_copy(
                    update={"endpoint": lease.endpoint.model_copy(update={"socket_path": "/nonexistent"})}
                )

            session._seat.held.calls.take = elsewhere  # type: ignore[method-assign]
            async with session as env:
                await env.reset()
                assert (await env.step("go")).observation == "step 1: go"

    asyncio.run(main())


def test_the_synchronous_client_plays_the_same_episode(serving: Serving) -> None:
    def play(url: str) -> list[Any]:
        with RockSync(url) as rock:
            with rock.env("toy", task="3", seed=2) as env:
                seen: list[Any] = [env.reset(), env.step("a"), env.call("state"), env.task, env.seed]
                assert env.sandbox_id in {view.id for view in rock.sandboxes()}
            assert rock.leases() == []
        return seen

    async def main() -> None:
        async with serving() as served:
            reset, step, state, task, seed = await asyncio.to_thread(play, served.url)
            assert reset.observation == "task 3 seed 2 step 0"
            assert (step.observation, state, task, seed) == ("step 1: a", {"count": 1}, "3", 2)

    asyncio.run(main())


def test_a_run_is_written_and_read_back(serving: Serving) -> None:
    async def main() -> None:
        now = datetime.now(UTC)
        async with serving() as served, served.client() as rock:
            run = await rock.create_run(RunCreate(name="r", recipe={"a": 1}, total_steps=5))
            assert (await rock.update_run(run.id, RunUpdate(status="training"))).status == "training"
            points = [MetricPoint(step=n, at=now, values={"x": float(n)}) for n in range(3)]
            for _ in range(2):
                await rock.report_metrics(run.id, points)
            assert [p.step for p in await rock.metrics(run.id, since_step=1)] == [1, 2]
            episodes = [
                EpisodeRecord(
                    id=f"ep-{n}",
                    env="toy",
                    task="3",
                    seed=n,
                    ledger=LedgerState.TRAINED,
                    outcome="completed",
                    reward=1.0,
                    started_at=now,
                    ended_at=now,
                )
                for n in range(450)
            ]
            await rock.report_episodes(run.id, episodes)
            page = await rock.episodes(run.id, outcome="completed", limit=10)
            assert (page.total, len(page.episodes)) == (450, 10)
            assert (await rock.episode(run.id, "ep-7")).seed == 7
            assert (await rock.ledger(run.id)).accounts[LedgerState.TRAINED] == 450
            assert [r.id for r in await rock.runs()] == [run.id]
            with pytest.raises(NotFound):
                await rock.run("run-none")

    asyncio.run(main())


def test_the_fleet_can_be_looked_at(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            assert (await rock.health()).runtime == "fake"
            assert [node.name for node in await rock.nodes()] == ["local"]
            assert [view.name for view in await rock.envs()] == ["toy"]
            assert (await rock.env_view("toy")).recovery == "replay"
            assert (await rock.tasks("toy", "train")).tasks == ("3", "4")
            async with rock.env("toy") as env:
                assert (await rock.sandbox_view(env.sandbox_id)).state == "leased"
                await rock.logs(env.sandbox_id)
            assert await rock.events(limit=5)

    asyncio.run(main())


def test_a_missing_key_is_told_with_the_way_out(serving: Serving) -> None:
    async def main() -> None:
        async with serving(key="secret") as served:
            async with Rock(served.url, key="") as rock:
                with pytest.raises(Unauthorized) as caught:
                    await rock.nodes()
                assert "ROCK_KEY" in caught.value.hint
            async with Rock(served.url, key="secret") as rock:
                assert await rock.nodes()

    asyncio.run(main())


def test_shells_commands_and_files(serving: Serving, tmp_path: Any) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.sandbox("any") as box:
            folder = tmp_path / "inside"
            first = await box.run(f"mkdir -p {folder} && cd {folder} && export NAME=x; echo $NAME; false")
            assert (first.exit_code, first.output.strip()) == (1, "x")
            assert (await box.run("pwd; echo $NAME")).output.split() == [str(folder), "x"]
            late = await box.run("sleep 30", timeout_s=0.2)
            assert late.timed_out
            assert (await box.exec(["cat"], stdin="hello")).stdout == "hello"
            data = bytes(range(256)) * 10_000
            assert await box.write_file(f"{folder}/a/b", data) == len(data)
            assert await box.read_file(f"{folder}/a/b") == data
            assert [(e.name, e.kind) for e in await box.list_files(str(folder))] == [("a", "dir")]
            await box.download(str(folder), tmp_path / "out")
            assert (tmp_path / "out/a/b").read_bytes() == data
            await box.upload(tmp_path / "out", f"{folder}/back")
            assert await box.read_file(f"{folder}/back/a/b") == data
            with pytest.raises(NotFound):
                await box.download("/no/such/file", tmp_path / "none")
            assert not (tmp_path / "none").exists()

    asyncio.run(main())


def test_a_sandbox_without_an_image_is_of_the_runtimes_own(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock:
            async with rock.sandbox() as box:
                assert box.lease.image == served.runtime.default_image
                assert (await box.run("echo hi")).output == "hi\n"
            async with rock.sandbox("", environ={"COLOUR": "green"}, limits=Limits(pids=64)) as box:
                spec = (await rock.sandbox_view(box.id)).spec
                assert (spec.image, spec.environ, spec.limits.pids) == ("fake", {"COLOUR": "green"}, 64)

    asyncio.run(main())


def test_what_waits_in_the_pool_stays_untouched(serving: Serving) -> None:
    async def main() -> None:
        async with serving() as served, served.client() as rock, rock.env("toy") as env:
            assert (await rock.exec(env.sandbox_id, ["echo", "hi"])).stdout == "hi\n"

            async def waiting() -> list[Any]:
                return await rock.sandboxes(state="ready")

            ready, *_ = await until(waiting)
            with pytest.raises(Conflict, match="not leased") as refused:
                await rock.exec(ready.id, ["echo", "hi"])
            assert "rock sandbox create" in refused.value.hint

    asyncio.run(main())
