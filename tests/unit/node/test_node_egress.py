"""The proxy through which a sandbox reaches the hosts of its list, on a node with the fake runtime; loopback only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rock.wire.handle import HeldLease, token_sha256
from rock.wire.models import SandboxSpec

Make = Callable[..., Any]


class Site:
    """An HTTP server that keeps what it was asked, and an echo behind it for whoever begins with another word."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heads: list[bytes] = []

    @property
    def spec(self) -> SandboxSpec:
        return SandboxSpec(image="plain", egress=(f"127.0.0.2:{self.port}", f"inside.example.org:{self.port}"))


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readline()
        if first.startswith(b"GET"):
            made.heads.append(first + await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        else:
            writer.write(first.upper())
            while data := await reader.read(100):
                writer.write(data.upper())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.2", 0)
    made = Site(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        server.close()


async def dial(w: Any, sandbox_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    path = w.config.run_dir / sandbox_id / "proxy.sock"
    await w.until(path.exists)
    return await asyncio.open_unix_connection(path)


async def ask(w: Any, sandbox_id: str, head: str) -> bytes:
    """All that comes back."""
    reader, writer = await dial(w, sandbox_id)
    writer.write(head.encode())
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has closed; False where it keeps the connection for ten seconds more."""
    try:
        async with asyncio.timeout(10):
            return await reader.read() == b""
    except TimeoutError:
        return False


def test_a_listed_host_is_reached_by_a_request_and_through_a_tunnel(world: Make) -> None:
    async def main() -> None:
        async with site() as there, world() as w:
            box = await w.claim(there.spec)
            where = f"127.0.0.2:{there.port}"
            got = await ask(w, box.id, f"GET http://{where}/a?b HTTP/1.1\r\nHost: other\r\nProxy-Connection: x\r\n\r\n")
            assert got.endswith(b"\r\n\r\nhello")
            assert there.heads == [f"GET /a?b HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode()]

            reader, writer = await dial(w, box.id)
            writer.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\nping\n".encode())
            assert await reader.readline() == b"HTTP/1.1 200 Connection established\r\n"
            await reader.readline()
            assert await reader.readline() == b"PING\n"
            writer.write_eof()
            assert await reader.read() == b"", "the end of one way is passed on"
            writer.close()
            stats = await w.node.stats(box.id)
            assert stats.egress_bytes > 10
            assert stats.egress_refused == 0

    asyncio.run(main())


@pytest.mark.parametrize("way", ["CONNECT {where} HTTP/1.1\r\n\r\n", "GET http://{where}/ HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize(
    ("host", "word"),
    [
        ("127.0.0.2:1", "port 1 is not in the list"),
        ("evil.example.org:{port}", "it is not in the list, which has 127.0.0.2:{port}"),
        ("inside.example.org:{port}", "its address 127.0.0.1 is not of the public internet"),
        ("INSIDE.example.org.:{port}", "127.0.0.1:{port} is not in the list"),
        ("127.0.0.1:{port}", "not in the list"),
        ("[::1]:{port}", "not in the list"),
    ],
)
def test_others_are_refused_by_name_and_told_once(world: Make, way: str, host: str, word: str) -> None:
    async def main() -> None:
        async def points_inward(_host: str, _port: int) -> list[str]:
            return ["127.0.0.1", "::1", "169.254.169.254"]

        async with site() as there, world() as w:
            w.node._supervisor.egress.resolve = points_inward
            box = await w.claim(there.spec)
            request = way.format(where=host.format(port=there.port))
            for _ in range(3):
                got = (await ask(w, box.id, request)).decode()
                assert got.startswith("HTTP/1.1 403 Forbidden")
                assert word.format(port=there.port) in got
            told = [event for event in w.events if event.kind == "sandbox.egress_refused"]
            assert [event.subject for event in told] == [box.id]
            assert word.format(port=there.port) in told[0].detail
            assert (await w.node.stats(box.id)).egress_refused == 3
            assert there.heads == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET https://pypi.org/ HTTP/1.1\r\n\r\n", 400),
        ("CONNECT a b c\r\n\r\n", 400),
        ("CONNECT pypi.org:99999 HTTP/1.1\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
        ("GET http://pypi.org/" + 40_000 * "x", 431),
    ],
)
def test_what_is_no_request_to_a_proxy_is_said_to_be_none(world: Make, request_: str, status: int) -> None:
    async def main() -> None:
        async with world() as w:
            box = await w.claim(SandboxSpec(image="plain", egress=("pypi.org",)))
            assert (await ask(w, box.id, request_)).startswith(f"HTTP/1.1 {status} ".encode())

    asyncio.run(main())


def test_the_way_out_ends_with_the_sandbox(world: Make) -> None:
    async def main() -> None:
        async with site() as there, world() as w:
            box, other = await w.claim(there.spec), await w.claim(there.spec)
            open_ones = []
            for one in (box, other):
                reader, writer = await dial(w, one.id)
                writer.write(f"CONNECT 127.0.0.2:{there.port} HTTP/1.1\r\n\r\nping\n".encode())
                assert b"PING" in await reader.readuntil(b"PING\n")
                open_ones.append((reader, writer))
            path = w.config.run_dir / box.id / "proxy.sock"
            await w.node.release(box.id, reason="test")
            assert await ended(open_ones[0][0]), "a connection through the proxy outlives its sandbox"
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                await asyncio.open_unix_connection(path)
            open_ones[1][1].write(b"still\n")
            assert await open_ones[1][0].readline() == b"STILL\n"
            for _, writer in open_ones:
                writer.close()
        plain = SandboxSpec(image="plain")
        async with world() as w:
            box = await w.claim(plain)
            assert not (w.config.run_dir / box.id / "proxy.sock").exists()

    asyncio.run(main())


def test_a_node_that_is_started_again_opens_the_way_out_of_what_it_adopts(world: Make) -> None:
    async def main() -> None:
        async with site() as there, world() as w:
            box = await w.claim(there.spec)
            await w.until((w.config.run_dir / box.id / "proxy.sock").exists)
            await w.node.close(keep_sandboxes=True)
            held = HeldLease("ls-1", box.id, token_sha256("secret"), 1, "run-1", there.spec, box.created_at)
            async with world(runtime=w.runtime, held=[held]) as again:

                async def answered() -> bool:
                    try:
                        got = await ask(again, box.id, f"GET http://127.0.0.2:{there.port}/ HTTP/1.1\r\n\r\n")
                    except OSError:
                        return False
                    return got.endswith(b"hello")

                await again.until(answered)

    asyncio.run(main())
