"""Whatever happens to a sandbox is noticed, explained and made good; restarts adopt what still lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from rock.domain.errors import RuntimeUnavailable
from rock.domain.sandbox import SandboxState
from rock.node.config import NodeConfig
from rock.node.health import Health, Pong
from rock.node.node import Node
from rock.runtimes.fake import FakeRuntime
from rock.runtimes.faults import Faults
from rock.wire.guest_client import GuestClient
from rock.wire.handle import HeldLease, token_sha256
from rock.wire.models import SandboxSpec

PLAIN = SandboxSpec(image="plain")
TOY = SandboxSpec(image="toy", env="toy", entry="toy:Env")
Make = Callable[..., Any]


@pytest.mark.parametrize("deaf", [False, True], ids=["with events", "without events"])
@pytest.mark.parametrize(
    ("kill", "cause"),
    [
        (lambda runtime, sid: runtime.kill(sid, 3), "exited"),
        (lambda runtime, sid: runtime.kill(sid, oom=True), "oom"),
        (lambda runtime, sid: runtime.remove(sid), "removed"),
        (lambda runtime, sid: runtime.freeze(sid), "frozen"),
        (lambda runtime, sid: runtime.pause(sid), "paused"),
        (lambda runtime, sid: runtime.hang(sid), "probe"),
    ],
    ids=["exited", "oom", "removed", "frozen", "paused", "hung"],
)
def test_the_death_of_a_leased_sandbox_is_noticed_and_explained(world: Make, kill: Any, cause: str, deaf: bool) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.deaf = deaf
            view = await w.claim(TOY)
            await probed(w, view.id)
            await kill(w.runtime, view.id)
            await w.until(lambda: "failed" in w.states(view.id))
            failed = next(v for v in w.changes if v.id == view.id and v.state is SandboxState.FAILED)
            assert failed.evidence is not None
            assert failed.evidence.cause == cause
            assert failed.lease_id == view.lease_id
            if cause == "exited":
                assert failed.evidence.exit_code == 3
            if cause == "removed":
                assert "from outside" in failed.evidence.detail
                assert failed.evidence.last_output == ()
            if cause in ("probe", "frozen", "paused"):
                assert "suspect" in w.states(view.id)
                assert "did not answer" in failed.evidence.detail
                assert not failed.evidence.probes[-1].ok
                assert failed.evidence.detected_after_s > 0.1
            assert failed.evidence.oom_killed == (cause == "oom")
            assert failed.evidence.probes
            assert len(failed.evidence.probes) <= 10
            assert failed.evidence.pressure.memory > 0
            assert failed.evidence.detected_after_s >= 0
            assert failed.meaning.startswith("It died")
            assert [e.subject for e in w.events if e.kind == "sandbox.failed"] == [view.id]
            await w.until(lambda: w.states(view.id)[-1] == "gone")

    asyncio.run(main())


async def probed(w: Any, sandbox_id: str) -> None:
    """Wait until it has answered a probe."""
    await w.until(lambda: w.node._fleet.records[sandbox_id].health.probes)


def test_an_unexplained_silence_is_borne_while_the_machine_is_under_strain(world: Make) -> None:
    async def main() -> None:
        async with world(dead_after_s=2.0) as w:
            w.node._supervisor.detector._strain.note(asyncio.get_running_loop().time() + 1000, lag_s=1.0)
            starved, asleep = await w.claim(), await w.claim()
            await w.runtime.starve(starved.id)
            await w.runtime.hang(asleep.id)
            await w.until(lambda: "failed" in w.states(asleep.id))  # nobody keeps that one from answering
            await w.until(lambda: w.states(starved.id)[-1] == "suspect")
            await w.runtime.thaw(starved.id)
            await w.until(lambda: w.states(starved.id)[-1] == "leased")

    asyncio.run(main())


@pytest.mark.parametrize("deaf", [False, True], ids=["with events", "without events"])
def test_a_child_killed_for_its_memory_is_told_and_does_not_fail_the_sandbox(world: Make, deaf: bool) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.deaf = deaf
            view = await w.claim(TOY)
            await w.runtime.oom_child(view.id)
            (event,) = await w.until(lambda: [e for e in w.events if e.subject == view.id])
            assert event.kind == "sandbox.oom"
            assert event.run_id == "run-1"
            assert "512 MiB" in event.detail
            assert (await w.node.sandbox(view.id)).oom_kills == 1
            assert w.states(view.id)[-1] == "leased"
            for _ in range(4):
                await w.runtime.kill_env(view.id)
            await w.until(lambda: "failed" in w.states(view.id))
            failed = next(v for v in w.changes if v.id == view.id and v.state is SandboxState.FAILED)
            assert (failed.evidence.cause, failed.evidence.oom_killed) == ("env_dead", True)

    asyncio.run(main())


def test_an_earlier_kill_of_a_child_is_not_what_a_later_death_is_put_down_to(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            await w.runtime.oom_child(view.id)
            await w.until(lambda: [e for e in w.events if e.kind == "sandbox.oom"])
            w.node._fleet.records[view.id].health.oom_at -= 60.0
            await w.runtime.kill(view.id, 137)
            await w.until(lambda: "failed" in w.states(view.id))
            evidence = next(v for v in w.changes if v.id == view.id and v.state is SandboxState.FAILED).evidence
            assert (evidence.cause, evidence.oom_killed, evidence.exit_code) == ("exited", True, 137)

    asyncio.run(main())


def test_the_guest_restarts_its_environment_and_the_node_hears_of_it(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(TOY)
            await w.runtime.kill_env(view.id)
            (event,) = await w.until(lambda: [e for e in w.events if e.kind == "sandbox.env_died"])
            assert "signal 9" in event.detail
            assert (await w.node.sandbox(view.id)).env_deaths == 1
            assert w.states(view.id)[-1] == "leased"
            async with await GuestClient.connect_unix(w.node.endpoint(view.id).socket_path) as guest:
                assert (await guest.call("hello"))["env"] == "ready"

    asyncio.run(main())


def test_one_that_is_far_slower_than_its_peers_is_suspect_and_then_replaced(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            views = [await w.claim(TOY) for _ in range(3)]
            await w.runtime.slow(views[0].id, 0.3)

            async def play(view: Any) -> None:
                async with await GuestClient.connect_unix(w.node.endpoint(view.id).socket_path) as guest:
                    await guest.call("env.reset", seq=0, task="1000", seed=0)
                    for step in range(1, 13):
                        await guest.call("env.step", seq=step, action="go")

            await asyncio.gather(*(play(view) for view in views))
            await w.until(lambda: "failed" in w.states(views[0].id))
            assert "suspect" in w.states(views[0].id)
            evidence = next(v for v in w.changes if v.id == views[0].id and v.state is SandboxState.FAILED).evidence
            assert evidence.cause == "slow"
            assert "times its image's" in evidence.detail
            assert [w.states(view.id)[-1] for view in views[1:]] == ["leased", "leased"]
            (p50_s,) = (await w.node.view()).step_p50_s.values()
            assert 0 < p50_s < 0.08

    asyncio.run(main())


def test_what_a_guest_says_of_itself_is_not_trusted() -> None:
    for answer in (None, [], "x", {"steps": 1}, {"steps": {"count": -1, "us": {}}}, {"env_deaths": "many"}):
        assert Pong.of(answer) == Pong()
    pong = Pong.of({"env": "ready", "steps": {"count": 3, "us": {"100": 2, "nonsense": 1, "9" * 30: 1}}})
    assert pong.steps is not None
    health = Health()
    assert health.new_steps(pong.steps) == {1e-4: 2}
    assert health.new_steps(pong.steps) == {}


def test_a_pool_replaces_what_dies_in_it(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            await w.node.set_pool(PLAIN, 2)
            await w.ready(PLAIN, 2)
            victims = [v.id for v in await w.node.sandboxes()]
            for victim in victims:
                await w.runtime.kill(victim)
            await w.until(lambda: all("gone" in w.states(v) for v in victims))
            await w.ready(PLAIN, 2)
            assert (await w.claim(wait_s=0)).id not in victims

    asyncio.run(main())


def test_a_claim_is_not_given_what_died_unnoticed(world: Make) -> None:
    async def main() -> None:
        async with world(probe_interval_s=30, reconcile_interval_s=30) as w:
            w.runtime.faults.deaf = True
            await w.node.set_pool(PLAIN, 1)
            await w.ready(PLAIN, 1)
            (victim,) = [v.id for v in await w.node.sandboxes()]
            await w.runtime.remove(victim)
            view = await w.claim()
            assert view.id != victim
            await w.runtime.kill(view.id)

    asyncio.run(main())


def test_a_frozen_sandbox_that_thaws_in_time_is_leased_again(world: Make) -> None:
    async def main() -> None:
        async with world(frozen_after_s=20.0) as w:
            view = await w.claim()
            await w.runtime.freeze(view.id)
            await w.until(lambda: w.states(view.id)[-1] == "suspect")
            await w.runtime.thaw(view.id)
            await w.until(lambda: w.states(view.id)[-2:] == ["suspect", "leased"])

    asyncio.run(main())


def test_an_environment_that_dies_while_it_waits_is_not_handed_out(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            await w.node.set_pool(TOY, 1)
            await w.ready(TOY, 1)
            (idle,) = [v.id for v in await w.node.sandboxes()]
            for _ in range(4):  # the guest gives up, and the node takes over
                await w.runtime.kill_env(idle)
            await w.until(lambda: "failed" in w.states(idle))
            evidence = next(v for v in w.changes if v.id == idle and v.state is SandboxState.FAILED).evidence
            assert evidence is not None
            assert evidence.cause == "env_dead"
            await w.ready(TOY, 1)

    asyncio.run(main())


def test_a_removal_that_fails_is_tried_again(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            w.runtime.faults.stop_error = "busy"
            await w.node.release(view.id, reason="test")
            await asyncio.sleep(0.05)
            assert w.states(view.id)[-1] == "released"
            w.runtime.faults.stop_error = ""
            await w.until(lambda: w.states(view.id)[-1] == "gone")

    asyncio.run(main())


def test_one_that_fills_its_shared_directory_is_ended(world: Make) -> None:
    async def main() -> None:
        async with world(shared_dir_bytes=1 << 20) as w:
            quiet, greedy = await w.claim(), await w.claim()
            shared = w.config.run_dir / greedy.id
            for n in range(3):
                (shared / f"junk{n}").write_bytes(b"x" * (400 << 10))
            await w.until(lambda: "failed" in w.states(greedy.id))
            failed = next(v for v in w.changes if v.id == greedy.id and v.state is SandboxState.FAILED)
            assert failed.evidence is not None
            assert failed.evidence.cause == "disk"
            assert "1 MiB" in failed.evidence.detail
            await w.until(lambda: w.states(greedy.id)[-1] == "gone")
            assert not shared.exists()
            assert w.states(quiet.id)[-1] == "leased"

    asyncio.run(main())


def test_orphans_are_removed(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            await w.runtime.start("sb-0rphan0000", PLAIN, w.config.run_dir / "sb-0rphan0000")
            await w.until(lambda: [e for e in w.events if e.kind == "sandbox.orphan"])

            async def none_left() -> bool:
                return not await w.runtime.list_owned()

            await w.until(none_left)

    asyncio.run(main())


def test_a_runtime_that_stops_answering_makes_the_node_unhealthy_and_kills_nothing(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            w.runtime.faults.list_error = "no daemon"
            w.runtime.faults.inspect_error = "no daemon"

            async def unhealthy() -> bool:
                return not (await w.node.view()).healthy

            await w.until(unhealthy)
            assert "no daemon" in (await w.node.view()).detail
            assert w.states(view.id)[-1] == "leased"
            w.runtime.faults.list_error = w.runtime.faults.inspect_error = ""
            await w.until(lambda: [e.kind for e in w.events][-2:] == ["node.down", "node.up"])

    asyncio.run(main())


def test_an_unusable_runtime_refuses_to_open_with_its_remedy(world: Make, short_dir: Any) -> None:
    async def main() -> None:
        runtime = FakeRuntime(faults=Faults(unavailable="not installed"))
        node = Node(NodeConfig("n", short_dir), runtime)
        with pytest.raises(RuntimeUnavailable, match="not installed"):
            await node.open()
        await runtime.destroy()

    asyncio.run(main())


def test_a_restart_adopts_what_is_leased_or_waits_and_sweeps_the_rest(world: Make) -> None:
    async def main() -> None:
        runtime = FakeRuntime()
        async with world(runtime=runtime) as first:
            await first.node.set_pool(PLAIN, 2)
            kept, dead, idle = await first.claim(TOY), await first.claim(), await first.claim()
            await first.ready(PLAIN, 2)
            warm = {v.id for v in await first.node.sandboxes() if v.state is SandboxState.READY}
            # As after kill -9: nothing is closed in order, everything stays behind.
            for name in ("_supervisor", "_gateway"):
                await getattr(first.node, name).close()
            await runtime.kill(dead.id)
            held = [
                HeldLease(f"ls-{n}", view.id, token_sha256("secret"), 1, "run-1", view.spec, datetime.now(UTC))
                for n, view in enumerate([kept, dead])
            ]
            async with world(runtime=runtime, held=held) as second:
                await second.until(lambda: second.states(dead.id)[-1:] == ["gone"])
                failed = next(v for v in second.changes if v.id == dead.id and v.state is SandboxState.FAILED)
                assert (failed.evidence.cause, failed.evidence.exit_code) == ("exited", 137)  # when nobody looked
                await second.ready(PLAIN, 2)

                async def swept() -> bool:
                    left = {v.id for v in await second.node.sandboxes()}
                    return left == warm | {kept.id} == {o.sandbox_id for o in await runtime.list_owned()}

                await second.until(swept)
                await second.until(lambda: not (second.config.run_dir / idle.id).exists())
                endpoint = second.node.endpoint(kept.id)
                hello = {"lease": "ls-0", "token": "secret", "epoch": 1}
                gateway = (endpoint.gateway_host, endpoint.gateway_port)
                async with await GuestClient.connect_tcp(*gateway, hello) as guest:
                    assert (await guest.call("hello"))["env"] == "ready"
                await runtime.kill(kept.id)  # and it is supervised
                await second.until(lambda: "failed" in second.states(kept.id))
        await runtime.destroy()

    asyncio.run(main())


def test_closing_removes_everything_it_owns(world: Make) -> None:
    async def main() -> None:
        runtime = FakeRuntime()
        async with world(runtime=runtime) as w:
            await w.node.set_pool(PLAIN, 2)
            await w.claim()
            await w.ready(PLAIN, 2)
        assert await runtime.list_owned() == []
        assert not w.config.run_dir.exists()
        assert {view.state for view in {v.id: v for v in w.changes}.values()} == {SandboxState.GONE}
        await runtime.destroy()

    asyncio.run(main())
