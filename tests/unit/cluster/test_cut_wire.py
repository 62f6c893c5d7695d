"""Control and two nodes, with a wire between that can be cut: leases move, and what returns is fenced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rock.control.control import Control, ControlConfig
from rock.domain.nodes import NodeStanding
from rock.domain.sandbox import SandboxState
from rock.runtimes.bundles import EnvCatalog
from rock.store.database import Database, database_url
from rock.wire.models import LeaseRequest, LeaseView, SandboxSpec

World = Callable[..., Any]
_S = NodeStanding
RECOVERS = LeaseRequest(spec=SandboxSpec(image="plain"), recovery="replay", ttl_s=600)
ENDS = LeaseRequest(spec=SandboxSpec(image="plain"), ttl_s=600)


@asynccontextmanager
async def platform(far: World, home: Path) -> AsyncIterator[tuple[Control, Any, Any]]:
    database = await Database.open(database_url("", home))
    async with far("n1") as one, far("n2") as two:
        control = Control(ControlConfig("test"), database, [one.remote, two.remote], EnvCatalog(home))
        await control.open()
        try:
            yield control, one, two
        finally:
            for f in (one, two):
                f.proxy.mend()
            await control.close()
            await control.write_down()
            await database.close()


async def standings(control: Control) -> list[NodeStanding]:
    return [view.standing for view in await control.nodes.views()]


async def lease_on(control: Control, node: str, request: LeaseRequest) -> LeaseView:
    other = ({"n1", "n2"} - {node}).pop()
    await control.nodes.cordon(other)
    lease = await control.leases.create(request)
    await control.nodes.uncordon(other)
    return lease


def test_a_node_that_is_cut_off_loses_its_leases_within_five_seconds_and_returns_fenced(
    far: World, short_dir: Path
) -> None:
    async def main() -> None:
        async with platform(far, short_dir) as (control, one, _two):
            moves, ends = [await lease_on(control, "n1", request) for request in (RECOVERS, ENDS)]
            stays = await lease_on(control, "n2", ENDS)
            # When control said so: asking for its standing waits for the node itself, a second at a time.
            died_at: list[float] = []
            control.nodes.listen(
                lambda _: None, lambda event: died_at.append(time.monotonic()) if event.kind == "node.dead" else None
            )
            starved_before_s, cut_at = control.nodes.starved_s, time.monotonic()
            one.proxy.cut()

            async def dead() -> bool:
                return (await standings(control))[0] is _S.DEAD

            await one.until(dead, 15.0)
            took_s = died_at[0] - cut_at - (control.nodes.starved_s - starved_before_s)
            assert took_s <= 5.0, took_s

            async def moved() -> LeaseView | None:
                found = {lease.id: lease for lease in control.leases.views()}
                assert stays.id in found
                lease = found[moves.id]
                return lease if ends.id not in found and not lease.recovering else None

            now = await one.until(moved)
            assert (now.endpoint.node, now.epoch > 1) == ("n2", True)
            # The node that is cut off knows nothing of it: what it holds runs on.
            held = [v.id for v in await one.node.sandboxes() if v.state is SandboxState.LEASED]
            assert set(held) == {moves.sandbox_id, ends.sandbox_id}
            assert (await control.leases.create(ENDS)).endpoint.node == "n2"

            one.proxy.mend()

            async def both_up() -> bool:
                return await standings(control) == [_S.UP, _S.UP]

            await one.until(both_up, 15.0)
            assert not [v for v in await one.node.sandboxes() if v.state is SandboxState.LEASED]
            assert (await lease_on(control, "n1", ENDS)).endpoint.node == "n1"
            assert {lease.id for lease in control.leases.views()} >= {moves.id, stays.id}

    asyncio.run(main())


def test_a_short_cut_costs_no_lease(far: World, short_dir: Path) -> None:
    async def main() -> None:
        async with platform(far, short_dir) as (control, one, _two):
            lease = await lease_on(control, "n1", ENDS)
            one.proxy.refuse()  # the connection breaks and cannot be made
            one.proxy.mend()

            async def again() -> bool:
                view = (await control.nodes.views())[0]
                return view.standing is _S.UP and view.generation == 2

            await one.until(again, 15.0)
            assert [(v.id, v.sandbox_id, v.epoch) for v in control.leases.views()] == [(lease.id, lease.sandbox_id, 1)]
            assert (await one.node.sandbox(lease.sandbox_id)).state is SandboxState.LEASED

    asyncio.run(main())


def test_a_drained_node_is_empty_in_the_end(far: World, short_dir: Path) -> None:
    async def main() -> None:
        async with platform(far, short_dir) as (control, one, _two):
            moves, waits = [await lease_on(control, "n1", request) for request in (RECOVERS, ENDS)]
            view = await control.nodes.drain("n1", "new disks")
            assert (view.standing, view.standing_detail) == (_S.DRAINING, "new disks")

            async def moved() -> bool:
                found = {lease.id: lease for lease in control.leases.views()}
                assert found[waits.id].epoch == 1  # what cannot move is waited for
                return found[moves.id].endpoint.node == "n2" and not found[moves.id].recovering

            await one.until(moved, 15.0)
            await control.leases.release(waits.id)

            async def empty() -> bool:
                return (await control.nodes.views())[0].standing_detail.startswith("empty")

            await one.until(empty, 15.0)

            async def nothing_there() -> bool:
                return not [v for v in await one.node.sandboxes() if v.state is SandboxState.LEASED]

            await one.until(nothing_there, 15.0)

    asyncio.run(main())


def test_a_claim_goes_to_another_node_when_the_first_breaks_off(far: World, short_dir: Path) -> None:
    async def main() -> None:
        async with platform(far, short_dir) as (control, one, _two):
            await control.nodes.cordon("n2")
            one.runtime.faults.start_delay_s = 3.0
            waiting = asyncio.ensure_future(control.leases.create(ENDS.model_copy(update={"wait_s": 30.0})))
            await one.until(lambda: one.runtime.starts)
            await control.nodes.uncordon("n2")
            one.proxy.refuse()
            lease = await waiting
            assert lease.endpoint.node == "n2"
            one.runtime.faults.start_delay_s = 0.0

    asyncio.run(main())
