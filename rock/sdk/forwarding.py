"""A port of the sandbox's own loopback as a port of ours. The sandbox keeps its network: none.

Invariants: only this machine's loopback listens; each connection is one of its own to the guest, so none waits for
another; when the forward is closed, or the sandbox lost, all of them end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Self

import orjson

from rock.domain.errors import RockError, SandboxLost
from rock.wire.guest_client import error_of
from rock.wire.models import LeaseView

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK_BYTES = 1 << 16
_CONNECT_S = 10.0


async def dial(lease: LeaseView) -> Streams:
    """A connection of its own to the guest: to its socket if that is here, else through the gateway."""
    endpoint = lease.endpoint
    try:
        if endpoint.socket_path and os.path.exists(endpoint.socket_path):  # noqa: ASYNC240 - a stat of a local file
            return await asyncio.open_unix_connection(endpoint.socket_path)
        reader, writer = await asyncio.open_connection(endpoint.gateway_host, endpoint.gateway_port)
    except OSError as error:
        raise SandboxLost(f"sandbox {lease.sandbox_id} does not answer", cause=str(error)) from error
    hello = {"lease": lease.id, "token": lease.token, "epoch": lease.epoch}
    await _ask(reader, writer, hello)
    return reader, writer


async def tunnel(lease: LeaseView, port: int) -> Streams:
    """A connection to ``port`` in the sandbox. Raises NotFound (nothing listens there), SandboxLost and the like."""
    async with asyncio.timeout(_CONNECT_S):
        reader, writer = await dial(lease)
        try:
            await _ask(reader, writer, {"id": 1, "op": "tunnel", "port": port, "epoch": lease.epoch})
        except BaseException:
            writer.close()
            raise
    return reader, writer


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frame: dict[str, object]) -> None:
    writer.write(orjson.dumps(frame, option=orjson.OPT_APPEND_NEWLINE))
    line = await reader.readline()
    if not line:
        raise SandboxLost("the connection ended before an answer")
    answer = orjson.loads(line)
    if not answer.get("ok"):
        raise error_of(answer)


class Forward:
    """``async with box.forward(8000) as forward: ... http://127.0.0.1:{forward.local_port}``.

    ``refused``: why the last connection did not come about; whoever connected only saw it end.
    """

    def __init__(self, connect: Callable[[int], Awaitable[Streams]], port: int, local_port: int = 0) -> None:
        self._connect = connect
        self.port = port
        self.local_port = local_port
        """Ours, known once it is open."""
        self.refused: RockError | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Listen. Raises OSError if ``local_port`` is taken."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.local_port)
        self.local_port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End it and every connection through it. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            far_reader, far_writer = await self._connect(self.port)
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                far_writer.close()
        except RockError as error:
            self.refused = error
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # one side left, or the forward is being closed
        finally:
            self._open.discard(task)
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To the end, which is passed on as the end of that way."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
