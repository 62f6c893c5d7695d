"""A client's connection: lines, and the bytes behind some of them, in both directions.

:class:`Connection` is what all share, whatever they travel on; :class:`DescriptorConnection` travels on a pair of
descriptors.
"""

from __future__ import annotations

import base64
import json
import os

from rock.guest.errors import GuestError, invalid
from rock.guest.loop import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

    from rock.guest.server import Server

MAX_LINE_BYTES = 64 << 20
MAX_DATA_BYTES = 16 << 20
"""Behind one line."""
MAX_UNREAD_BYTES = 256 << 20
"""Answers a client does not read; past that it is cut off, before it takes the sandbox's memory."""


class Connection:
    """Frames in and out. A subclass sets ``_writer``, gives what arrives to :meth:`take`, and closes."""

    _writer: Any

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._missing = 0
        self._then: Any = None
        self.execs: set[Any] = set()
        self.open = True

    def take(self, data: bytes) -> None:
        """What came in, cut wherever it was."""
        if not self._buffer and not self._missing and data.find(b"\n") == len(data) - 1:  # the usual case: a whole line
            self._server.handle(self, data)
            return
        seen = len(self._buffer)
        self._buffer += data
        while self.open:
            if self._missing:
                if len(self._buffer) < self._missing:
                    return
                raw, then = bytes(memoryview(self._buffer)[: self._missing]), self._then
                del self._buffer[: self._missing]
                self._missing, self._then = 0, None
                then(raw)
            else:
                end = self._buffer.find(b"\n", seen)
                if end < 0:
                    break
                line = bytes(memoryview(self._buffer)[:end])
                del self._buffer[: end + 1]
                self._server.handle(self, line)
            seen = 0
        if len(self._buffer) > MAX_LINE_BYTES:
            self.send_error("null", invalid("a line of more than %d bytes" % MAX_LINE_BYTES))
            self.close()

    def expect(self, size: int, then: Any) -> None:
        """The next ``size`` bytes, at least one, are no lines: ``then(bytes)`` when they are here."""
        self._missing, self._then = size, then

    def send_data(self, id_json: str, value: dict[str, Any], raw: bool) -> None:
        """Of ``value`` the bytes in "data" go as they are behind the line, if the request wants that; else in it."""
        data = value.pop("data")
        if not raw:
            value["data_b64"] = base64.b64encode(data).decode()
            self.send(id_json, json.dumps(value, separators=(",", ":")).encode())
            return
        head = '{"id":%s,"ok":true,"data_bytes":%d,"value":%s}\n' % (id_json, len(data), json.dumps(value))
        self._written(head.encode() + data)

    def send(self, id_json: str, value_json: bytes) -> None:
        self._written(b'{"id":' + id_json.encode() + b',"ok":true,"value":' + value_json + b"}\n")

    def _written(self, frame: bytes) -> None:
        self._writer.write(frame)
        if self._writer.pending_bytes > MAX_UNREAD_BYTES:
            self.close()

    def send_error(self, id_json: str, error: GuestError) -> None:
        self.send_error_json(id_json, json.dumps(error.frame()).encode())

    def send_error_json(self, id_json: str, error_json: bytes) -> None:
        self._writer.write(b'{"id":' + id_json.encode() + b',"ok":false,"error":' + error_json + b"}\n")

    def close(self) -> None:
        raise NotImplementedError


class DescriptorConnection(Connection):
    """Frames in and out of one pair of descriptors."""

    def __init__(self, server: Server, read_fd: int, write_fd: int, on_close: Any) -> None:
        super().__init__(server)
        self._loop = server.loop
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._on_close = on_close
        self._writer = Writer(self._loop, write_fd)
        self._loop.add_reader(read_fd, self._readable)

    @property
    def fds(self) -> tuple[int, int]:
        return self._read_fd, self._write_fd

    def detach(self) -> bytes:
        """From now on somebody else reads and writes it, and says ``detached`` in the end. Returns what was read and
        not handled yet."""
        self.open = False
        self._loop.forget(self._read_fd)
        self._loop.forget(self._write_fd)
        rest, self._buffer = bytes(self._buffer), bytearray()
        return rest

    def detached(self) -> None:
        self._on_close()

    def set_listening(self, on: bool) -> None:
        if self.open:
            self._loop.add_reader(self._read_fd, self._readable if on else None)

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, 1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.take(data)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        for running in list(self.execs):  # nobody is left to hear of them
            running.kill()
        self._writer.close()
        self._loop.forget(self._read_fd)
        self._loop.forget(self._write_fd)
        self._on_close()
