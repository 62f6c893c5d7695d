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
from rock.node.node import Node
from rock.runtimes.fake import FakeRuntime, Faults
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
        (lambda runtime, sid: runtime.freeze(sid), "probe"),
    ],
    ids=["exited", "oom", "removed", "frozen"],
)
def test_the_death_of_a_leased_sandbox_is_noticed_and_explained(world: Make, kill: Any, cause: str, deaf: bool) -> None:
    async def main() -> None:
        async with world() as w:
            w.runtime.faults.deaf = deaf
            view = await w.claim()
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
            if cause == "probe":
                assert "suspect" in w.states(view.id)
                assert "paused" in failed.evidence.detail
            assert [e.subject for e in w.events if e.kind == "sandbox.failed"] == [view.id]
            await w.until(lambda: w.states(view.id)[-1] == "gone")

    asyncio.run(main())


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
        async with world(dead_after_s=20.0) as w:
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
            w.runtime._sandboxes[f"fake-{idle}"].server.env.state = "dead"
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


def test_a_restart_adopts_what_is_leased_and_sweeps_the_rest(world: Make) -> None:
    async def main() -> None:
        runtime = FakeRuntime()
        async with world(runtime=runtime) as first:
            await first.node.set_pool(PLAIN, 2)
            kept, dead, idle = await first.claim(TOY), await first.claim(), await first.claim()
            await first.ready(PLAIN, 2)
            # As after kill -9: nothing is closed in order, everything stays behind.
            for name in ("_supervisor", "_gateway"):
                await getattr(first.node, name).close()
            await runtime.kill(dead.id)
            held = [
                HeldLease(f"ls-{n}", view.id, token_sha256("secret"), 1, "run-1", view.spec, datetime.now(UTC))
                for n, view in enumerate([kept, dead])
            ]
            async with world(runtime=runtime, held=held) as second:
                assert [v.id for v in await second.node.sandboxes()] == [kept.id]
                assert [o.sandbox_id for o in await runtime.list_owned()] == [kept.id]
                assert not (second.config.run_dir / idle.id).exists()
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
