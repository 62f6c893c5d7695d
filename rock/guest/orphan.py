"""The dead man's switch: a guest whom nobody has contacted for long ends itself, with everything it started.

So nothing runs on when the whole platform was killed. Contact is an open connection: the kernel closes those of whoever
dies, so a client that thinks for minutes between two steps keeps its sandbox, also while the control plane is being
restarted, and one that was killed does not. Only connections from outside count: what runs in the sandbox can reach the
socket too, and must not keep it alive.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from rock.guest.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

_LOOKS = 8
"""Looks per ``after_s``: by so much of it the end may come late."""


class DeadMansSwitch:
    """Armed from the start: whoever starts a guest and dies before it connects leaves an orphan too.

    ``on_orphaned()`` is called once, when nobody has been connected for ``after_s``.
    """

    def __init__(self, loop: Loop, after_s: float, on_orphaned: Any) -> None:
        self._loop = loop
        self._after_s = after_s
        self._on_orphaned = on_orphaned
        self._connected = 0
        self._contact_at = time.monotonic()
        self._look()

    def connected(self) -> None:
        self._connected += 1

    def disconnected(self) -> None:
        self._connected -= 1
        self._contact_at = time.monotonic()

    def _look(self) -> None:
        if not self._connected and time.monotonic() - self._contact_at >= self._after_s:
            self._on_orphaned()
        else:
            self._loop.call_later(self._after_s / _LOOKS, self._look)


def from_outside(sock: socket.socket) -> bool:
    """Whether the peer lives outside of this sandbox: there the kernel knows no number for it. True where we are not in
    a process namespace of our own (a guest on the bare host: tests)."""
    try:
        pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return False
    return pid == 0 or os.getppid() > 1
