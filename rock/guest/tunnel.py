"""A connection that turns into a pipe to a TCP port of the sandbox's own loopback: after the answer, bytes only.

Invariants: neither side's unread data takes more than ``_HIGH_BYTES``; the end of one way is passed on as the end of
that way, so protocols that wait for it work; when both have ended, nothing is left.
"""

from __future__ import annotations

import errno
import os
import socket

from rock.guest.errors import GuestError
from rock.guest.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_HIGH_BYTES = 1 << 20
_READ_BYTES = 1 << 16


class _Way:
    """One direction: read from ``source``, write to ``target``."""

    def __init__(self, loop: Loop, source: int, target: Any, done: Any) -> None:
        self._loop, self._source, self._target, self._done = loop, source, target, done
        self._pending = bytearray()
        self._ended = False
        self.over = False
        loop.add_reader(source, self._read)

    def feed(self, data: bytes) -> None:
        self._pending += data
        self._write()

    def _read(self) -> None:
        try:
            data = os.read(self._source, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended = True
            self._loop.remove_reader(self._source)
        self.feed(data)

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: self._target.send(memoryview(self._pending)[:_READ_BYTES].tobytes())]
        except BlockingIOError:
            pass
        except OSError:
            self._pending.clear()
            self._ended = True
            self._loop.remove_reader(self._source)
        waiting = bool(self._pending)
        self._loop.set_writer(self._target.fileno(), self._write if waiting else None)
        if not self._ended:
            self._loop.add_reader(self._source, self._read if len(self._pending) < _HIGH_BYTES else None)
        elif not waiting and not self.over:
            self.over = True
            try:
                self._target.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is gone altogether
            self._done()


class Splice:
    """Two connected sockets as one pipe, ours from now on; ``on_end()`` when both are closed. ``first``: what ``near``
    has already sent."""

    def __init__(self, loop: Loop, near: Any, far: Any, first: bytes, on_end: Any) -> None:
        self._loop = loop
        self._sockets = (near, far)
        self._on_end = on_end
        self._ways = [
            _Way(loop, near.fileno(), far, self._one_is_over),
            _Way(loop, far.fileno(), near, self._one_is_over),
        ]
        if first:
            self._ways[0].feed(first)

    def _one_is_over(self) -> None:
        if all(way.over for way in self._ways):
            for sock in self._sockets:
                if sock.fileno() >= 0:
                    self._loop.forget(sock.fileno())
                    sock.close()
            self._on_end()


class Tunnel:
    """From ``connect`` to the end of both ways."""

    def __init__(self, loop: Loop, port: int) -> None:
        self._loop = loop
        self._port = port
        self._far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._far.setblocking(False)

    def connect(self, on_ready: Any) -> None:
        """``on_ready(error or None)``, once."""
        self._on_ready = on_ready
        code = self._far.connect_ex(("127.0.0.1", self._port))
        if code not in (0, errno.EINPROGRESS):
            self._loop.call_later(0, lambda: self._connected(code))
        else:  # also where it is connected at once: the request is to be read to its end first
            self._loop.set_writer(self._far.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.set_writer(self._far.fileno(), None)
        self._connected(self._far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _connected(self, code: int) -> None:
        error = None
        if code:
            self._far.close()
            text = "nothing listens on port %d of the sandbox: %s" % (self._port, os.strerror(code))
            error = GuestError("not-found", text, "Start the server first, on 127.0.0.1 or on every address.")
        self._on_ready(error)

    def splice(self, near: Any, first: bytes, on_end: Any) -> None:
        """``near``: the client's socket, ours from now on. ``first``: what the client has already sent."""
        Splice(self._loop, near, self._far, first, on_end)

    def discard(self) -> None:
        self._far.close()
