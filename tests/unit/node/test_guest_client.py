"""The client of the guest's protocol, against real sockets: pairing, time-outs, lost connections, hostile peers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rock.domain.errors import DeadlineExceeded, InvalidRequest, NotFound, SandboxLost, StaleEpoch
from rock.wire import guest_client
from rock.wire.guest_client import GuestClient

Handler = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def guest_at(path: Path, handle: Handler) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await handle(json.loads(line), writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield str(path)
    finally:
        server.close()


def send(writer: asyncio.StreamWriter, **frame: Any) -> None:
    writer.write(json.dumps(frame).encode() + b"\n")


async def echo(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    send(writer, id=request["id"], ok=True, value=request)


def test_many_calls_in_flight_get_their_own_answers_in_any_order(tmp_path: Path) -> None:
    held: list[int] = []

    async def reversed_answers(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        held.append(request["id"])
        if len(held) == 20:
            for call_id in reversed(held):
                send(writer, id=call_id, ok=True, value=call_id * 10)

    async def main() -> None:
        async with guest_at(tmp_path / "s", reversed_answers) as path, await GuestClient.connect_unix(path) as client:
            values = await asyncio.gather(*(client.call("x", timeout_s=5) for _ in range(20)))
            assert values == [10 * (n + 1) for n in range(20)]

    asyncio.run(main())


def test_an_error_frame_is_raised_as_the_error_it_names(tmp_path: Path) -> None:
    async def refuse(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        send(writer, id=request["id"], ok=False, error=StaleEpoch("old", hint="h", cause="c").to_problem())

    async def main() -> None:
        async with guest_at(tmp_path / "s", refuse) as path, await GuestClient.connect_unix(path) as client:
            with pytest.raises(StaleEpoch) as caught:
                await client.call("env.step", seq=1)
            assert (caught.value.message, caught.value.hint, caught.value.cause) == ("old", "h", "c")

    asyncio.run(main())


def test_a_late_answer_is_never_given_to_another_call(tmp_path: Path) -> None:
    late: list[int] = []

    async def slow_then_both(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if request["op"] == "slow":
            late.append(request["id"])
            return
        for call_id in late:
            send(writer, id=call_id, ok=True, value="late")
        send(writer, id=request["id"], ok=True, value="mine")

    async def main() -> None:
        async with guest_at(tmp_path / "s", slow_then_both) as path, await GuestClient.connect_unix(path) as client:
            with pytest.raises(DeadlineExceeded, match=r"slow did not finish within 0\.05 s"):
                await client.call("slow", timeout_s=0.05)
            assert await client.call("quick") == "mine"

    asyncio.run(main())


def test_a_lost_connection_ends_every_call_and_later_ones_at_once(tmp_path: Path) -> None:
    async def hang_up(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def main() -> None:
        async with guest_at(tmp_path / "s", hang_up) as path, await GuestClient.connect_unix(path) as client:
            results = await asyncio.gather(client.call("a"), client.call("b"), return_exceptions=True)
            assert all(isinstance(r, SandboxLost) for r in results)
            assert client.closed
            with pytest.raises(SandboxLost):
                await client.call("c")

    asyncio.run(main())


@pytest.mark.parametrize("line", [b"no json\n", b"[1, 2]\n", b"x" * 3000 + b"\n"])
def test_garbage_from_inside_ends_the_connection_not_the_process(tmp_path: Path, line: bytes) -> None:
    async def garbage(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(line)

    async def main() -> None:
        async with guest_at(tmp_path / "s", garbage) as path, await GuestClient.connect_unix(path) as client:
            with pytest.raises(SandboxLost):
                await client.call("a", timeout_s=5)

    asyncio.run(main())


def test_an_endless_line_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_client, "MAX_LINE_BYTES", 1 << 16)

    async def endless(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * (1 << 20))

    async def main() -> None:
        async with guest_at(tmp_path / "s", endless) as path, await GuestClient.connect_unix(path) as client:
            with pytest.raises(SandboxLost, match="more than 65536 bytes"):
                await client.call("a", timeout_s=5)

    asyncio.run(main())


def test_large_values_travel_both_ways(tmp_path: Path) -> None:
    async def big_echo(request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        send(writer, id=request["id"], ok=True, value=request["data"])

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                await big_echo(json.loads(line), writer)
            writer.close()

        server = await asyncio.start_unix_server(serve, str(tmp_path / "s"), limit=64 << 20)
        async with server, await GuestClient.connect_unix(str(tmp_path / "s")) as client:
            data = "é" * (3 << 20)
            assert await client.call("x", data=data) == data

    asyncio.run(main())


def test_nobody_listening_and_unserialisable_fields_are_said_plainly(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(SandboxLost, match="no guest answers"):
            await GuestClient.connect_unix(str(tmp_path / "nobody"))
        async with guest_at(tmp_path / "s", echo) as path, await GuestClient.connect_unix(path) as client:
            with pytest.raises(InvalidRequest, match="not JSON-serialisable"):
                await client.call("x", action=object())
            assert (await client.call("x", a=1))["a"] == 1

    asyncio.run(main())


def test_over_tcp_the_greeting_decides(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline())
        if hello["token"] != "right":
            send(writer, ok=False, error=NotFound("no such lease").to_problem())
            writer.close()
            return
        send(writer, ok=True)
        while line := await reader.readline():
            await echo(json.loads(line), writer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            async with await GuestClient.connect_tcp("127.0.0.1", port, {"token": "right"}) as client:
                assert (await client.call("ping"))["op"] == "ping"
            with pytest.raises(NotFound, match="no such lease"):
                await GuestClient.connect_tcp("127.0.0.1", port, {"token": "wrong"})
        with pytest.raises(SandboxLost, match="does not answer"):
            await GuestClient.connect_tcp("127.0.0.1", port, {"token": "right"})

    asyncio.run(main())
