"""Whatever answers, or does not, a caller of the SDK meets the one vocabulary of errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from rock.sdk import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PlatformUnavailable,
    Rock,
    RockError,
    RunCreate,
    StorageError,
    Unauthorized,
)

Handler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def http_server(handler: Handler, port: int = 0) -> AsyncIterator[str]:
    """A server that speaks just enough HTTP to be wrong in every way; one request per connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await handler(head.split("\r\n")[0], reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: int, body: object, content_type: str = "application/json") -> Handler:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handle(_: str, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(raw)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + raw)
        await writer.drain()

    return handle


HEALTH = {
    "status": "ok",
    "instance": "i",
    "version": "0",
    "uptime_s": 1,
    "pid": 1,
    "runtime": "fake",
    "database": "sqlite",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def failure(handler: Handler, call: Callable[[Rock], Awaitable[object]]) -> RockError:
    async with http_server(handler) as url, Rock(url, retry_s=0.3, timeout_s=0.5) as rock:
        with pytest.raises(RockError) as caught:
            await call(rock)
        return caught.value


def test_nobody_at_the_address_says_where_and_how_to_start_one() -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{free_port()}"
        async with Rock(url, retry_s=0) as rock:
            with pytest.raises(PlatformUnavailable) as caught:
                await rock.health()
        assert url in caught.value.message
        assert "rock up" in caught.value.hint

    asyncio.run(main())


def test_a_platform_that_is_just_starting_is_waited_for() -> None:
    async def main() -> None:
        port = free_port()
        async with Rock(f"http://127.0.0.1:{port}", retry_s=20) as rock:
            asking = asyncio.create_task(rock.health())
            await asyncio.wait({asking}, timeout=0.2)
            assert not asking.done()
            async with http_server(answer(200, HEALTH), port):
                assert (await asking).runtime == "fake"

    asyncio.run(main())


def test_the_platforms_own_errors_arrive_as_they_were_raised() -> None:
    sent = StorageError("The disk is full.", hint="Free some.", cause="ENOSPC")
    found = asyncio.run(failure(answer(507, sent.to_problem()), lambda rock: rock.health()))
    assert type(found) is StorageError
    assert (found.message, found.hint, found.cause) == (sent.message, sent.hint, sent.cause)


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"<html>nginx</html>"), (200, b"<html>"), (200, b'{"hello": 1}'), (500, b""), (404, b"[]")],
)
def test_something_else_at_the_address_is_named_as_such(status: int, body: bytes) -> None:
    found = asyncio.run(failure(answer(status, body, "text/html"), lambda rock: rock.health()))
    assert isinstance(found, PlatformUnavailable)
    assert "ROCK_URL" in found.hint


def test_a_refusal_without_a_problem_document_asks_for_the_key() -> None:
    found = asyncio.run(failure(answer(401, b"no"), lambda rock: rock.health()))
    assert isinstance(found, Unauthorized)
    assert "ROCK_KEY" in found.hint


def test_a_platform_that_hangs_is_given_up_in_time() -> None:
    async def hang(_: str, reader: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await reader.read()

    found = asyncio.run(failure(hang, lambda rock: rock.health()))
    assert isinstance(found, DeadlineExceeded)
    assert "0.5 s" in found.message


def test_only_harmless_requests_are_sent_again_after_a_broken_connection() -> None:
    seen: list[str] = []

    async def drop_then_answer(line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(line.split()[0])
        if len(seen) > 1:
            await answer(200, HEALTH)(line, reader, writer)

    async def main() -> None:
        async with http_server(drop_then_answer) as url, Rock(url, retry_s=5) as rock:
            assert (await rock.health()).runtime == "fake"
            assert seen == ["GET", "GET"]
            seen.clear()
            with pytest.raises(PlatformUnavailable):
                await rock.create_run(RunCreate(name="a", recipe={}))
            assert seen == ["POST"]

    asyncio.run(main())


@pytest.mark.parametrize("url", ["127.0.0.1:7625", "ftp://x", "http://", "nonsense"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InvalidRequest, match="address"):
        Rock(url)


@pytest.mark.parametrize("name", ["", "..", "."])
def test_names_that_would_change_the_path_are_no_names(name: str) -> None:
    async def main() -> None:
        async with Rock("http://127.0.0.1:1", retry_s=0) as rock:
            with pytest.raises(NotFound):
                await rock.sandbox_view(name)

    asyncio.run(main())


def test_a_name_with_slashes_stays_one_part_of_the_path() -> None:
    async def main() -> None:
        lines: list[str] = []

        async def note(line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            lines.append(line)
            await answer(404, NotFound("no").to_problem())(line, reader, writer)

        async with http_server(note) as url, Rock(url) as rock:
            with pytest.raises(NotFound):
                await rock.sandbox_view("../runs?x=1")
        assert lines == ["GET /v1/sandboxes/..%2Fruns%3Fx%3D1 HTTP/1.1"]

    asyncio.run(main())


def test_parameters_out_of_range_are_named() -> None:
    async def main() -> None:
        async with Rock("http://127.0.0.1:1") as rock:
            with pytest.raises(InvalidRequest, match="ttl_s=0"):
                rock.env("alfworld", ttl_s=0)

    asyncio.run(main())
