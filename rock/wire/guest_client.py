"""Client of the guest's protocol (`rock.guest`): JSON lines, many requests in flight on one connection, paired by id.

Shared by the node (probes, ``bind``, one-off commands) and the SDK (episodes, shells, files).

Invariants: every call ends — with its value, the error the guest sent, ``DeadlineExceeded`` when its time is up, or
``SandboxLost`` when the connection ends first. A late answer to a call that has given up is dropped, never given to
another call. What comes from inside a sandbox is not trusted: a line that is too long or no JSON ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import orjson

from rock.domain.errors import DeadlineExceeded, InvalidRequest, RockError, SandboxLost, from_problem

# Largest answer accepted: file.read of a few MiB in base64 fits; an endless line from a hostile guest does not.
MAX_LINE_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 5.0

_LOST_HINT = "The sandbox is gone or its guest ended; take a new lease."


class _Connection(asyncio.Protocol):
    """Frames in, frames out. Knows nothing of operations."""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str) -> None:
        self._loop = loop
        self.peer = peer
        self.transport: asyncio.Transport | None = None
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.greeting: asyncio.Future[dict[str, Any]] | None = None
        self.lost: RockError | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._incomplete: dict[str, Any] | None = None
        """An answer whose bytes come behind its line."""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        while data and self.lost is None:
            data = self._data_received(data) if self._incomplete is not None else self._lines_received(data)

    def _data_received(self, data: bytes) -> bytes:
        """Returns what belongs to the next line."""
        own, rest = data[: self._missing], data[self._missing :]
        self._chunks.append(own)
        self._missing -= len(own)
        if not self._missing and (frame := self._incomplete) is not None:
            self._incomplete = None
            frame["value"]["data"] = b"".join(self._chunks)
            self._chunks.clear()
            self._settle(frame)
        return rest

    def _lines_received(self, data: bytes) -> bytes:
        """Returns what comes behind a line that announces bytes."""
        if b"\n" not in data:
            self._chunks.append(data)
            self._buffered_bytes += len(data)
            if self._buffered_bytes > MAX_LINE_BYTES:
                self.abort(SandboxLost(f"{self.peer} sent a line of more than {MAX_LINE_BYTES} bytes", hint=_LOST_HINT))
            return b""
        if self._chunks:
            data = b"".join((*self._chunks, data))
            self._chunks.clear()
            self._buffered_bytes = 0
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            if end > begin:
                self._on_line(data[begin:end])
            begin = end + 1
            if self._incomplete is not None:
                return data[begin:]
        if rest := data[begin:]:
            self._chunks.append(rest)
            self._buffered_bytes = len(rest)
        return b""

    def _on_line(self, line: bytes) -> None:
        try:
            frame = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.abort(SandboxLost(f"{self.peer} sent a line that is no JSON: {line[:80]!r}", hint=_LOST_HINT))
            return
        if not isinstance(frame, dict):
            self.abort(SandboxLost(f"{self.peer} sent a frame that is no object: {line[:80]!r}", hint=_LOST_HINT))
            return
        if self.greeting is not None and not self.greeting.done():
            self.greeting.set_result(frame)
            return
        if (size := frame.get("data_bytes")) is not None:
            if not isinstance(size, int) or not 0 <= size <= MAX_LINE_BYTES or not isinstance(frame.get("value"), dict):
                self.abort(SandboxLost(f"{self.peer} sent a frame with wrong data_bytes: {size!r}", hint=_LOST_HINT))
                return
            if size:
                self._incomplete, self._missing = frame, size
                return
            frame["value"]["data"] = b""
        self._settle(frame)

    def _settle(self, frame: dict[str, Any]) -> None:
        future = self.pending.pop(frame["id"], None) if isinstance(frame.get("id"), int) else None
        if future is None:
            self._on_unpaired(frame)
        elif not future.done():
            if frame.get("ok"):
                future.set_result(frame.get("value"))
            else:
                future.set_exception(error_of(frame))

    def _on_unpaired(self, frame: Mapping[str, Any]) -> None:
        """An answer whose caller gave up is dropped; an error without an id concerns the whole connection."""
        if frame.get("id") is None and not frame.get("ok"):
            self.abort(error_of(frame))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is None:
            self.lost = SandboxLost(
                f"the connection to {self.peer} ended", hint=_LOST_HINT, cause=str(exc) if exc else ""
            )
        pending, self.pending = self.pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(_again(self.lost))
        if self.greeting is not None and not self.greeting.done():
            self.greeting.set_exception(_again(self.lost))
        if not self.closed.done():
            self.closed.set_result(None)

    def abort(self, error: RockError) -> None:
        self.lost = self.lost or error
        if self.transport is not None:
            self.transport.abort()

    def give_up(self, call_id: int, op: str, timeout_s: float) -> None:
        future = self.pending.pop(call_id, None)
        if future is not None and not future.done():
            future.set_exception(
                DeadlineExceeded(
                    f"{op} did not finish within {timeout_s:g} s",
                    hint="It may still be running in the sandbox; raise timeout_s if it needs longer.",
                )
            )


class GuestClient:
    """One connection to a guest, from :meth:`connect_unix` or :meth:`connect_tcp`; for many tasks of one loop."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._next_id = 0

    @classmethod
    async def connect_unix(cls, path: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> GuestClient:
        """Connect to the guest's own socket. Raises SandboxLost when nobody listens there."""
        loop = asyncio.get_running_loop()
        connection = _Connection(loop, path)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_unix_connection(lambda: connection, path)
        except (OSError, TimeoutError) as error:
            raise SandboxLost(f"no guest answers at {path}", hint=_LOST_HINT, cause=str(error)) from error
        return cls(connection)

    @classmethod
    async def connect_tcp(
        cls, host: str, port: int, hello: Mapping[str, Any], *, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> GuestClient:
        """Connect through a node's gateway. ``hello``: ``{"lease", "token", "epoch"}`` of the lease.

        Raises: what the gateway answers (LeaseExpired, StaleEpoch, Unauthorized, SandboxLost), or SandboxLost.
        """
        loop = asyncio.get_running_loop()
        peer = f"the gateway {host}:{port}"
        connection = _Connection(loop, peer)
        connection.greeting = loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                transport, _ = await loop.create_connection(lambda: connection, host, port)
                transport.write(orjson.dumps(dict(hello)) + b"\n")
                answer = await connection.greeting
        except (OSError, TimeoutError) as error:
            connection.abort(SandboxLost(f"{peer} does not answer"))
            raise SandboxLost(f"{peer} does not answer", hint=_LOST_HINT, cause=str(error)) from error
        except asyncio.CancelledError:
            connection.abort(SandboxLost("the connection was given up"))
            raise
        if not answer.get("ok"):
            connection.abort(SandboxLost(f"{peer} refused the connection"))
            raise error_of(answer)
        return cls(connection)

    @property
    def closed(self) -> bool:
        transport = self._connection.transport
        return self._connection.lost is not None or transport is None or transport.is_closing()

    async def call(
        self,
        op: str,
        *,
        timeout_s: float = 60.0,
        work_s: float | None = None,
        attached: bytes | memoryview | None = None,
        **fields: Any,
    ) -> Any:
        """Ask the guest to do ``op`` and return its value.

        ``timeout_s`` bounds the wait on this side. ``work_s`` is what the guest is sent as the operation's own
        ``timeout_s`` (``exec``, ``shell.run``: the guest then kills the command and answers); keep it the smaller.
        ``attached`` goes behind the request as it is, for operations that take bytes; with a field ``raw`` the value's
        "data" came so.

        Raises: the error the guest answered with; DeadlineExceeded after ``timeout_s`` (what was asked for may still
        happen); SandboxLost when the connection ends; InvalidRequest for a field that is no JSON.
        """
        connection = self._connection
        if connection.lost is not None or connection.transport is None:
            raise _again(connection.lost or SandboxLost(f"{connection.peer} is not connected", hint=_LOST_HINT))
        self._next_id += 1
        call_id = self._next_id
        if work_s is not None:
            fields["timeout_s"] = work_s
        if attached is not None:
            fields["data_bytes"] = len(attached)
        try:
            line = orjson.dumps({"id": call_id, "op": op, **fields}, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise InvalidRequest(f"{op}: a field is not JSON-serialisable ({error})") from error
        future: asyncio.Future[Any] = self._loop.create_future()
        connection.pending[call_id] = future
        timer = self._loop.call_later(timeout_s, connection.give_up, call_id, op, timeout_s)
        try:
            connection.transport.write(line)
            if attached:
                connection.transport.write(attached)
            return await future
        finally:
            timer.cancel()
            connection.pending.pop(call_id, None)

    async def wait_closed(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        await asyncio.shield(self._connection.closed)

    async def close(self) -> None:
        """End the connection; calls in flight raise SandboxLost. The guest and its environment live on."""
        connection = self._connection
        connection.lost = connection.lost or SandboxLost("the connection was closed by this side")
        if connection.transport is not None:
            connection.transport.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.wait_closed()
            connection.transport.abort()

    async def __aenter__(self) -> GuestClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def error_of(frame: Mapping[str, Any]) -> RockError:
    """The error an error frame carries; a malformed one is the guest's failure."""
    problem = frame.get("error")
    if not isinstance(problem, dict):
        return SandboxLost(f"malformed error frame: {str(frame)[:200]}", hint=_LOST_HINT)
    return from_problem(problem)


def _again(error: RockError) -> RockError:
    """A fresh exception of the same content: one object raised in many tasks would gather their tracebacks."""
    return type(error)(error.message, hint=error.hint, cause=error.cause)
