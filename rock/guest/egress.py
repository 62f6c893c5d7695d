"""The way out of a sandbox that may speak to some hosts: a port on its loopback, each connection piped to the node.

The node's proxy listens on a socket in the shared directory, and alone decides who may be spoken to. What is started
here finds the port in the variables that programs look for. A sandbox still has no network of its own.
"""

from __future__ import annotations

import os
import socket

from rock.guest.loop import Loop
from rock.guest.tunnel import Splice

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

MAX_CONNECTIONS = 64
_NO_PROXY = "localhost,127.0.0.1,::1"


class Door:
    """``path``: the proxy's socket."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = path
        self._open = 0
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(MAX_CONNECTIONS)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        loop.add_reader(self._listener.fileno(), self._accept)

    def tell(self, environ: Any) -> None:
        """Set the variables in both ways of writing; those that are set already stay."""
        proxy = "http://127.0.0.1:%d" % self.port
        for name, value in (("http_proxy", proxy), ("https_proxy", proxy), ("no_proxy", _NO_PROXY)):
            environ.setdefault(name, value)
            environ.setdefault(name.upper(), value)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        far.setblocking(False)
        try:
            if self._open >= MAX_CONNECTIONS:
                raise OSError("too many at once")
            near.setblocking(False)
            far.connect(self._path)
        except OSError:  # the node is being started again, or the sandbox is at its end
            near.close()
            far.close()
            return
        self._open += 1
        Splice(self._loop, near, far, b"", self._ended)

    def _ended(self) -> None:
        self._open -= 1


def open_door(loop: Loop, path: str) -> Door:
    door = Door(loop, path)
    door.tell(os.environ)
    return door
