"""Bounded text: what a command printed, and the last lines that the guest and its environment printed."""

from __future__ import annotations

import collections
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

MAX_LINES = 1000
MAX_LINE_BYTES = 4096
_LOG_FILE_BYTES = 1 << 20


class Capture:
    """Keeps the first and the last half of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._limit = limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    @property
    def truncated(self) -> bool:
        return self.total > self._limit

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self._limit - self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            if len(self._tail) > self._half * 2 + (1 << 16):
                del self._tail[: -self._half]

    def text(self) -> str:
        if not self.truncated:
            return (self._head + self._tail).decode("utf-8", "replace")
        left_out = self.total - self._limit
        tail = self._tail[-self._half :]
        return "%s\n[… %d bytes left out …]\n%s" % (
            self._head.decode("utf-8", "replace"),
            left_out,
            tail.decode("utf-8", "replace"),
        )


class Log:
    """A ring of lines. All is also passed on to ``fd`` (the guest's standard error), for who reads it after our end."""

    def __init__(self, fd: int = -1) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=MAX_LINES)
        self._partial = b""
        self._fd = fd
        self._is_file = fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)

    def feed(self, data: bytes) -> None:
        """Raw output; lines may come in pieces."""
        self._pass_on(data)
        parts = (self._partial + data).split(b"\n")
        self._partial = parts.pop()
        if len(self._partial) > MAX_LINE_BYTES:
            parts.append(self._partial)
            self._partial = b""
        self._lines.extend(part[:MAX_LINE_BYTES].decode("utf-8", "replace") for part in parts[-MAX_LINES:])

    def say(self, text: str) -> None:
        self.feed(("guest: %s\n" % text).encode())

    def lines(self, count: int) -> list[Any]:
        found = list(self._lines)
        if self._partial:
            found.append(self._partial[:MAX_LINE_BYTES].decode("utf-8", "replace"))
        return found[-count:] if count > 0 else []

    def _pass_on(self, data: bytes) -> None:
        if self._fd < 0:
            return
        try:
            if self._is_file and os.fstat(self._fd).st_size > _LOG_FILE_BYTES:
                os.ftruncate(self._fd, 0)  # the file is on the host's disk: it must not grow with the episode
            os.write(self._fd, data)
        except OSError:
            self._fd = -1  # nobody reads it any more; the ring goes on
