"""A node behind a wire is the same node; a wire that breaks loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from rock.cluster.remote import RemoteNode, Timing
from rock.domain.backoff import BackoffPolicy
from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    DeadlineExceeded,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    PlatformUnavailable,
    Unauthorized,
)
from rock.domain.sandbox import SandboxState
from rock.node.server import NodeServer
from rock.wire.guest_client import GuestClient
from rock.wire.handle import HeldLease
from rock.wire.models import ExecRequest, SandboxSpec, SandboxView
from rock.wire.node_wire import Address

World = Callable[..., Any]

PLAIN = SandboxSpec(image="plain")
QUICK = Timing(view_s=0.5, look_s=1.0, reconnect_s=0.5, backoff=BackoffPolicy(0.01, 0.05))


def held(view: SandboxView, lease_id: str = "ls-1", epoch: int = 1) -> HeldLease:
    return HeldLease(lease_id, view.id, "0" * 64, epoch, "run-1", view.spec, datetime.now(UTC))


def test_everything_a_node_does_it_does_over_the_wire(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            assert await f.remote.adopt([]) == ()
            view = await f.claim()
            assert view.state is SandboxState.LEASED
            assert f.remote.endpoint(view.id) == f.node.endpoint(view.id)
            assert [v.id for v in await f.remote.sandboxes()] == [view.id]
            assert (await f.remote.sandbox(view.id)).lease_id == "ls-1"
            result = await f.remote.exec(view.id, ExecRequest(argv=("echo", "hello")))
            assert (result.exit_code, result.stdout) == (0, "hello\n")
            assert isinstance(await f.remote.logs(view.id, 5), tuple)
            await f.remote.set_pool(PLAIN, 1)
            await f.until(lambda: any(c.state is SandboxState.READY and c.id != view.id for c in f.changes))
            seen = await f.remote.view()
            assert (seen.name, seen.generation, seen.pools[0].target) == ("n1", 1, 1)
            assert f.remote.last_view == seen
            assert f.remote.age_s < 5
            assert await f.remote.quarantine() == ()
            assert not await f.remote.clear_quarantine("nothing")
            await f.remote.release(view.id, reason="done")
            await f.until(lambda: any(c.id == view.id and c.state is SandboxState.GONE for c in f.changes))

    asyncio.run(main())


def test_the_gateway_is_reached_at_the_address_in_the_endpoint(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            view = await f.claim()
            door = f.remote.endpoint(view.id)
            hello = {"lease": "ls-1", "token": "secret", "epoch": 1}
            async with await GuestClient.connect_tcp(door.gateway_host, door.gateway_port, hello) as guest:
                assert (await guest.call("ping"))["env"] == "none"

    asyncio.run(main())


def test_errors_keep_their_kind_their_hint_and_their_cause(far: World) -> None:
    async def main() -> None:
        async with far(capacity=1) as f:
            await f.remote.adopt([])
            f.runtime.faults.missing_images = {"nowhere"}
            with pytest.raises(ImageNotFound, match="nowhere") as caught:
                await f.claim(spec=PLAIN.model_copy(update={"image": "nowhere"}))
            assert "missing_images" in caught.value.hint
            await f.claim()
            with pytest.raises(CapacityExceeded):
                await f.claim("ls-2", wait_s=0.05)
            with pytest.raises(NotFound):
                await f.remote.sandbox("sb-nothing")
            with pytest.raises(InvalidRequest):
                await f.remote.set_pool(PLAIN, 1000)

    asyncio.run(main())


def test_only_who_knows_the_token_is_served(far: World) -> None:
    async def main() -> None:
        async with far() as f:

            async def locate() -> Address:
                return f.proxy.address

            with pytest.raises(Unauthorized, match="does not know"):
                await RemoteNode("n1", locate, "a guess", timing=QUICK).open(5.0)
            with pytest.raises(Conflict, match="n1 answers"):
                await RemoteNode("n2", locate, f.token, timing=QUICK).open(5.0)

    asyncio.run(main())


def test_an_address_that_others_reach_needs_a_token(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            bare = NodeServer(f.node, token="", run_dir=f.node._config.run_dir)
            for address in ("0.0.0.0:0", "[::]:0", "10.0.0.1:0", "example.org:0"):
                with pytest.raises(InvalidRequest, match="token"):
                    await bare.listen(Address.parse(address))
            await bare.listen(Address.parse("127.0.0.1:0"))
            await bare.close()

    asyncio.run(main())


def test_nothing_is_claimed_before_control_said_which_leases_are_good(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            with pytest.raises(PlatformUnavailable, match="which leases are good"):
                await f.claim(wait_s=0.05)

    asyncio.run(main())


def test_a_control_that_returns_keeps_its_leases_and_the_rest_is_ended(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            good, moved, unknown = [await f.claim(f"ls-{n}") for n in (1, 2, 3)]
            f.proxy.refuse()
            with pytest.raises(PlatformUnavailable):
                await f.remote.sandboxes()
            f.proxy.mend()
            await f.until(lambda: f.remote._link)
            # Lease 2 is on another node by now under epoch 2, and nobody remembers lease 3.
            leases = [held(good), held(moved, "ls-2", 2)]
            assert await f.remote.adopt(leases) == ("ls-1",)
            alive = {v.id for v in await f.remote.sandboxes() if v.state is SandboxState.LEASED}
            assert alive == {good.id}
            assert (await f.remote.view()).generation == 2
            assert unknown.id not in alive

    asyncio.run(main())


def test_a_lease_that_is_good_elsewhere_under_the_same_epoch_is_ended_here(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            view = await f.claim()
            elsewhere = replace(held(view), sandbox_id="sb-elsewhere")
            assert await f.remote.adopt([elsewhere]) == ()
            assert SandboxState.LEASED not in {v.state for v in await f.remote.sandboxes()}

    asyncio.run(main())


def test_what_happens_while_control_is_away_is_told_when_it_returns(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            view = await f.claim()
            f.proxy.refuse()
            await f.until(lambda: f.server.alone_s > 0)
            await f.runtime.kill(view.id)
            await f.until(lambda: f.node._fleet.failures)
            f.proxy.mend()
            failed = await f.until(lambda: [c for c in f.changes if c.state is SandboxState.FAILED])
            assert failed[0].id == view.id
            assert [e.kind for e in f.events if e.subject == view.id] == ["sandbox.failed"]

    asyncio.run(main())


def test_a_release_and_a_pool_that_could_not_be_told_are_told_later(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            view = await f.claim()
            f.proxy.refuse()
            await f.until(lambda: f.server.alone_s > 0)
            await f.remote.release(view.id, reason="done")
            await f.remote.set_pool(PLAIN, 2)
            f.proxy.mend()
            await f.until(lambda: any(c.id == view.id and c.state is SandboxState.RELEASED for c in f.changes))

            async def told() -> bool:
                return [pool.target for pool in (await f.node.view()).pools if pool.digest == PLAIN.digest] == [2]

            await f.until(told)

    asyncio.run(main())


def test_every_call_into_a_cut_wire_ends_by_its_deadline(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            await f.remote.view()
            f.proxy.cut()
            with pytest.raises(DeadlineExceeded, match=r"'view' within 0\.5 s"):
                await f.remote.view()
            assert f.remote.last_view is not None  # what was seen last stays known, with its age
            with pytest.raises(DeadlineExceeded):
                await f.remote.sandboxes()
            f.proxy.mend()
            await f.remote.view()

    asyncio.run(main())


def test_a_claim_that_was_given_up_leaves_nothing_leased(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            f.runtime.faults.start_delay_s = 0.3
            waiting = asyncio.ensure_future(f.claim())
            await f.until(lambda: f.runtime.starts)
            waiting.cancel()  # the node is told, and takes it back
            f.proxy.cut()
            late = asyncio.ensure_future(f.claim("ls-2"))
            await asyncio.sleep(0)
            late.cancel()  # the node is told after it has answered: the answer is refused
            f.proxy.mend()

            async def nobody_has_any() -> bool:
                views = await f.node.sandboxes()
                return f.runtime.starts >= 1 and all(v.state is not SandboxState.LEASED for v in views)

            await f.until(lambda: not f.node._fleet.counts()[SandboxState.STARTING])
            await f.until(nobody_has_any)

    asyncio.run(main())


def test_the_newest_control_takes_over(far: World) -> None:
    async def main() -> None:
        async with far() as f:

            async def locate() -> Address:
                return f.proxy.address

            await f.remote.adopt([])
            view = await f.claim()
            f.remote._keeper.cancel()  # the old one hangs and does not come back
            newer = RemoteNode("n1", locate, f.token, timing=QUICK)
            await newer.open(5.0)
            assert await newer.adopt([held(view)]) == ("ls-1",)
            await f.until(lambda: f.remote._link.closed.is_set())
            await newer.detach()

    asyncio.run(main())


def test_claims_are_refused_at_once_when_control_is_about_to_close(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.adopt([])
            f.runtime.faults.start_delay_s = 2.0
            waiting = asyncio.ensure_future(f.claim(wait_s=30.0))
            await f.until(lambda: f.runtime.starts)
            f.remote.refuse_claims()
            with pytest.raises(PlatformUnavailable, match="shutting down"):
                await waiting
            with pytest.raises(PlatformUnavailable, match="shutting down"):
                await f.claim()

    asyncio.run(main())


def test_closing_tells_the_node_whether_its_sandboxes_stay(far: World) -> None:
    async def main() -> None:
        async with far() as f:
            await f.remote.close(keep_sandboxes=True)
            assert await f.server.close_requested is True

    asyncio.run(main())
