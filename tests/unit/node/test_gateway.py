"""The gateway lets through who holds the lease, and nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from rock.domain.errors import InvalidRequest, LeaseExpired, RockError, SandboxLost, StaleEpoch, Unauthorized
from rock.node import gateway
from rock.wire.guest_client import GuestClient
from rock.wire.models import SandboxSpec

TOY = SandboxSpec(image="toy", env="toy", entry="toy:Env")
Make = Callable[..., Any]


def test_an_episode_runs_through_it(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim(TOY)
            end = w.node.endpoint(view.id)
            hello = {"lease": view.lease_id, "token": "secret", "epoch": 1}
            async with await GuestClient.connect_tcp(end.gateway_host, end.gateway_port, hello) as guest:
                await guest.call("env.reset", seq=0, task="2", seed=0, options={}, epoch=1)
                steps = [await guest.call("env.step", seq=n, action="x" * 100_000, epoch=1) for n in (1, 2)]
            assert steps[1]["terminated"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"token": "wrong"}, Unauthorized),
        ({"token": ""}, Unauthorized),
        ({"lease": "ls-other"}, LeaseExpired),
        ({"epoch": 0}, StaleEpoch),
        ({"epoch": 2}, StaleEpoch),
        ({"epoch": "x"}, InvalidRequest),
    ],
)
def test_a_wrong_hello_is_refused(world: Make, change: dict[str, Any], error: type[RockError]) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            end = w.node.endpoint(view.id)
            hello = {"lease": view.lease_id, "token": "secret", "epoch": 1, **change}
            with pytest.raises(error):
                await GuestClient.connect_tcp(end.gateway_host, end.gateway_port, hello)

    asyncio.run(main())


def test_a_splice_ends_with_its_lease(world: Make) -> None:
    async def main() -> None:
        async with world() as w:
            view = await w.claim()
            end = w.node.endpoint(view.id)
            hello = {"lease": view.lease_id, "token": "secret", "epoch": 1}
            guest = await GuestClient.connect_tcp(end.gateway_host, end.gateway_port, hello)
            await guest.call("ping")
            w.runtime.faults.stop_delay_s = 1.0
            await w.node.release(view.id, reason="test")
            await asyncio.wait_for(guest.wait_closed(), 0.8)
            with pytest.raises(SandboxLost):
                await guest.call("ping")
            with pytest.raises(LeaseExpired):
                await GuestClient.connect_tcp(end.gateway_host, end.gateway_port, hello)

    asyncio.run(main())


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[" * 3000 + b"\n", b"x" * 100_000, b"\xff\xfe\n", b""])
def test_garbage_and_silence_are_cut_off(world: Make, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "HELLO_TIMEOUT_S", 0.2)

    async def main() -> None:
        async with world() as w:
            end = w.node.endpoint("any")
            reader, writer = await asyncio.open_connection(end.gateway_host, end.gateway_port)
            writer.write(line)
            answer = await asyncio.wait_for(reader.readline(), 3)
            assert json.loads(answer)["error"]["type"] == "urn:rock:invalid-request"
            writer.close()

    asyncio.run(main())
