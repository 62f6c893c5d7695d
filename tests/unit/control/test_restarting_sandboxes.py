"""Sandboxes that an operator has replaced: what becomes of whoever holds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from rock.domain.errors import Conflict, NotFound, SandboxLost
from rock.wire.models import RestartRequest

Staging = Callable[..., AbstractAsyncContextManager[Any]]


async def events(it: Any, subject: str) -> dict[str, str]:
    return {event.kind: event.detail for event in await it.control.events() if event.subject == subject}


def test_a_lease_that_recovers_goes_on_in_another_and_no_loss_is_counted(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            done = await it.control.restart_sandbox(lease.sandbox_id, RestartRequest(reason="slow disk", wait_s=20))
            assert (done.outcome, done.lease_id, done.node) == ("moved", lease.id, lease.endpoint.node)
            now = it.leases.heartbeat(lease.id)
            assert done.replacement == now.sandbox_id != lease.sandbox_id
            assert (now.epoch, now.recoveries, it.leases.counters.recovered) == (2, 0, 0)
            await it.until_leased({now.sandbox_id: lease.id})
            said = await events(it, lease.sandbox_id)
            assert "slow disk" in said["sandbox.restarted"]
            assert {"lease.moving", "lease.rebound"} <= set(await events(it, lease.id))
            with pytest.raises(Conflict, match="already"):
                await it.control.restart_sandbox(lease.sandbox_id, RestartRequest())

    asyncio.run(main())


def test_one_that_does_not_recover_is_refused_unless_its_loss_is_wanted(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease(recovery="none")
            with pytest.raises(Conflict, match=f"lease {lease.id} on it does not recover"):
                await it.control.restart_sandbox(lease.sandbox_id, RestartRequest())
            assert it.leases.heartbeat(lease.id).sandbox_id == lease.sandbox_id
            assert await it.leased() == {lease.sandbox_id: lease.id}
            done = await it.control.restart_sandbox(lease.sandbox_id, RestartRequest(force=True, reason="slow disk"))
            assert (done.outcome, done.replacement) == ("lost", "")
            with pytest.raises(SandboxLost, match="restarted by request: slow disk"):
                it.leases.heartbeat(lease.id)
            assert "lease.lost" in await events(it, lease.id)
            await it.until_leased({})

    asyncio.run(main())


def test_one_that_nobody_holds_is_ended_and_its_pool_refills(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            lease = await it.lease()
            node = it.nodes[lease.endpoint.node]

            async def ready() -> set[str]:
                return {view.id for view in await node.sandboxes() if view.state == "ready"}

            before = await it.until(ready)
            waiting = min(before)
            done = await it.control.restart_sandbox(waiting, RestartRequest())
            assert (done.sandbox_id, done.outcome, done.lease_id) == (waiting, "ended", "")

            async def another() -> set[str]:
                return await ready() - before

            assert await it.until(another)
            assert waiting not in await ready()
            assert it.leases.heartbeat(lease.id).sandbox_id == lease.sandbox_id

    asyncio.run(main())


def test_one_that_never_was_is_not_found(stage: Staging) -> None:
    async def main() -> None:
        async with stage() as it:
            with pytest.raises(NotFound):
                await it.control.restart_sandbox("sb-nobody", RestartRequest())

    asyncio.run(main())
