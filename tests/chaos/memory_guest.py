"""The guest's own server and connections, their descriptors replaced by a connection in memory of the virtual loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from virtual_loop import End, Listener, VirtualLoop, in_process

from rock.guest.connection import Connection
from rock.guest.server import Server


class GuestLoop:
    """What is left of `rock.guest.loop.Loop` when nothing has a descriptor."""

    def __init__(self, own_signals: bool = False) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop

    def run(self) -> None:
        """Nothing to do in the thread that the fake runtime starts for it."""

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass

    def forget(self, fd: int) -> None:
        pass

    def call_later(self, delay_s: float, callback: Any) -> Any:
        return self.loop.call_later(delay_s, callback)

    def call_threadsafe(self, callback: Any) -> None:
        self.loop.call_soon(callback)


class MemoryConnection(Connection, asyncio.Protocol):
    """Frames in and out as in the real one; only where the bytes go is another matter."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self._server: Any = server
        self._waiting: list[bytes] = []
        self._listening = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, End)
        self._writer: Any = _Writer(transport)
        self._transport = transport
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._listening:
            self.take(data)
        else:
            self._waiting.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._server.left(self)

    def set_listening(self, on: bool) -> None:
        self._listening = on
        while self._listening and self._waiting:
            self.take(self._waiting.pop(0))

    def close(self) -> None:
        if self.open:
            self.open = False
            self._server.left(self)
            self._transport.close()


class _Writer:
    pending_bytes = 0

    def __init__(self, transport: End) -> None:
        self.write = transport.write


class MemoryServer(Server):
    """Listens in the virtual loop's network; a file marks the place, as a socket would."""

    _silent = False
    _path = ""

    def listen(self, path: str) -> None:
        loop: Any = self.loop
        Path(path).touch()
        self._path = path
        with in_process(path):  # it outlives the node's process that started it
            self._listener: Listener | None = loop.loop.network.listen(self._accepted, path, 0)

    def _accepted(self) -> MemoryConnection:
        connection = MemoryConnection(self)
        if self._silent:  # the kernel takes the connection; the guest does not look
            connection.set_listening(False)
        return connection

    def joined(self, connection: MemoryConnection) -> None:
        self._connections.add(connection)

    def left(self, connection: MemoryConnection) -> None:
        self._connections.discard(connection)

    def set_listening(self, on: bool) -> None:
        self._silent = not on
        for connection in list(self._connections):
            connection.set_listening(on)

    def disconnect_all(self) -> None:
        super().disconnect_all()
        if self._listener is not None:
            self._listener.close()
