"""Leases that outlive their sandbox: on two nodes of the fake runtime, over restarts, and against every rival."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rock.domain.errors import LeaseExpired, Recovering, SandboxLost, StorageError
from rock.wire.guest_client import GuestClient
from rock.wire.models import LeaseView, SandboxSpec

Staging = Callable[..., AbstractAsyncContextManager[Any]]


async def hello(lease: LeaseView, token: str, epoch: int) -> Any:
    greeting = {"lease": lease.id, "token": token, "epoch": epoch}
    endpoint = lease.endpoint
    async with await GuestClient.connect_tcp(endpoint.gateway_host, endpoint.gateway_port, greeting) as guest:
        return await guest.call("hello")


def test_a_lost_sandbox_is_replaced_before_anybody_asks_and_its_token_still_opens_the_door(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            assert (lease.recovery, lease.epoch, lease.recoveries) == ("replay", 1, 0)
            await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
            await it.until(lambda: it.leases.heartbeat(lease.id).epoch > 1)
            moved = await it.again(lease)
            assert moved == await it.again(lease) == it.leases.heartbeat(lease.id)
            assert moved.sandbox_id != lease.sandbox_id
            assert (moved.epoch, moved.recoveries, moved.recovering, moved.token) == (2, 1, False, "")
            assert (await hello(moved, lease.token, 2))["epoch"] == 2
            assert it.leases.counters.recovered == 1
            await it.leases.release(lease.id)
            assert await it.leased() == {}

    asyncio.run(main())


def test_the_holders_word_is_taken_and_the_old_sandbox_ended(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            moved = await it.again(lease, why="it does not answer me")
            assert moved.sandbox_id != lease.sandbox_id
            await it.until_leased({moved.sandbox_id: lease.id})
            # As after a crash that forgot epoch 7: the holder is given a sandbox under one that nobody ever had.
            later = await it.again(lease, epoch=7)
            assert later.epoch > 7
            assert later.sandbox_id != moved.sandbox_id

    asyncio.run(main())


def test_a_dead_nodes_leases_move_and_what_runs_on_there_is_ended_when_it_is_back(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            leases = [await it.lease() for _ in range(3)]
            dead = leases[0].endpoint.node
            alive = next(name for name in it.nodes if name != dead)
            there = [lease for lease in leases if lease.endpoint.node == dead]
            choose = it.control.nodes.choose

            async def only_the_living(spec: SandboxSpec, **_: Any) -> Any:
                return it.nodes[alive]

            it.control.nodes.choose = only_the_living  # type: ignore[method-assign]
            it.leases.losses.node_lost(dead, "silent for 5 s")
            for lease in there:
                moved = await it.again(lease)
                assert (moved.endpoint.node, moved.epoch) == (alive, 2)
            it.control.nodes.choose = choose  # type: ignore[method-assign]

            async def one_sandbox_a_lease() -> bool:
                return sorted((await it.leased()).values()) == sorted(lease.id for lease in leases)

            await it.until(one_sandbox_a_lease)

    asyncio.run(main())


def test_without_recovery_a_loss_ends_the_lease_and_its_sandbox(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            for said in (False, True):
                lease = await it.lease(recovery="none")
                if said:
                    with pytest.raises(SandboxLost, match="it hangs"):
                        await it.again(lease, why="it hangs")
                else:
                    await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
                    await it.until(lambda: len(it.leases) == 0)
                with pytest.raises(SandboxLost):
                    it.leases.heartbeat(lease.id)
            await it.until_leased({})

    asyncio.run(main())


def test_who_asks_while_there_is_none_is_told_to_ask_again_and_gets_it_later(stage: Staging) -> None:
    async def main() -> None:
        async with stage(capacity=1) as it:
            lease = await it.lease()

            async def both_places_are_taken() -> bool:
                """Else one that is being started now would be there for who asks."""
                views = [view for node in it.nodes.values() for view in await node.sandboxes()]
                return sorted(view.state for view in views) == ["leased", "ready"]

            await it.until(both_places_are_taken)
            for runtime in it.runtimes.values():
                runtime.faults.start_delay_s = 2
            for node in it.nodes.values():
                for view in await node.sandboxes():
                    if view.state == "ready":
                        await node.release(view.id, reason="test")
            await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
            with pytest.raises(Recovering):
                await it.again(lease, wait_s=0.1)
            assert it.leases.heartbeat(lease.id).recovering
            for runtime in it.runtimes.values():
                runtime.faults.start_delay_s = 0
            await it.leases.release(lease.id)
            with pytest.raises(LeaseExpired):
                await it.again(lease)
            assert it.leases.losses._rebinding._running == {}

    asyncio.run(main())


def test_an_epoch_that_a_crash_forgot_is_not_given_again(stage: Staging) -> None:
    """The database took no writes when the lease moved on; its holder may still speak for that epoch."""

    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()

            async def full(_: Any) -> None:
                raise StorageError("the disk is full")

            it.leases._records._store.rebind_lease = full
            await it.runtimes[lease.endpoint.node].kill(lease.sandbox_id)
            moved = await it.again(lease)
            assert moved.epoch == 2
            await it.end()
            await it.begin()
            assert it.leases.heartbeat(lease.id).epoch != 2
            latest = await it.again(lease)
            assert latest.epoch > 2
            assert latest.sandbox_id != moved.sandbox_id

    asyncio.run(main())


def test_a_restart_keeps_the_epoch_and_recovers_what_did_not_survive_it(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            kept, lost, plain = await it.lease(), await it.lease(), await it.lease(recovery="none")
            await it.runtimes[kept.endpoint.node].kill(kept.sandbox_id)
            kept = await it.again(kept)
            await it.end()
            for lease in (lost, plain):
                await it.runtimes[lease.endpoint.node].remove(lease.sandbox_id)
            await it.begin()
            assert it.leases.heartbeat(kept.id).model_copy(update={"endpoint": kept.endpoint}) == kept
            moved = await it.again(lost)
            assert moved.epoch > lost.epoch
            assert (await hello(moved, lost.token, moved.epoch))["epoch"] == moved.epoch
            with pytest.raises(SandboxLost, match="restart"):
                it.leases.heartbeat(plain.id)
            await it.leases.release(lost.id)
            await it.end()
            await it.begin()
            assert [view.id for view in it.leases.views()] == [kept.id]

    asyncio.run(main())


def test_a_database_that_refuses_holds_up_no_recovery_and_hears_of_it_later(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            store = it.leases._records._store
            write = store.rebind_lease

            async def full(_: Any) -> None:
                raise StorageError("the disk is full")

            store.rebind_lease = full  # type: ignore[method-assign]
            moved = await it.again(lease)
            assert moved.epoch == 2
            store.rebind_lease = write  # type: ignore[method-assign]
            await it.until(lambda: not it.leases._records._moved)
            assert [row.epoch for row in await store.living_leases()] == [2]

    asyncio.run(main())


def test_a_sandbox_that_is_leased_to_nobody_is_ended(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            stray = await it.nodes["b"].claim(
                it.catalog.spec("toy"), lease_id="ls-unknown", token_sha256="0" * 64, epoch=1, run_id="", wait_s=20
            )
            await it.until_leased({lease.sandbox_id: lease.id})
            assert "sandbox.fenced" in {event.kind for event in await it.control.events()}
            assert stray.id != lease.sandbox_id

    asyncio.run(main())


def test_a_sandbox_that_is_being_released_is_no_stray(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            node = it.nodes[lease.endpoint.node]
            release, may_go = node.release, asyncio.Event()

            async def late(sandbox_id: str, *, reason: str) -> None:
                if reason == "released":  # not the comparison's
                    await may_go.wait()
                await release(sandbox_id, reason=reason)

            node.release = late  # type: ignore[method-assign]
            releasing = asyncio.ensure_future(it.leases.release(lease.id))
            await asyncio.sleep(0)
            await it.leases.reconcile()
            may_go.set()
            await releasing
            assert "sandbox.fenced" not in {event.kind for event in await it.control.events()}

    asyncio.run(main())
