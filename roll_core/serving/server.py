"""The endpoint's server, in the event loop of whoever starts it, which keeps its signals to itself.

Invariants: it listens before :func:`serving` hands out its address; afterwards nothing of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from roll_core.errors import RecipeError

_CLOSE_S = 5.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C belongs to the run, which then ends the server."""
        yield


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def serving(app: Starlette, host: str, port: int) -> AsyncIterator[str]:
    """Serve ``app``; yields its address as ``http://HOST:PORT``. ``port`` 0: any that is free.

    Raises RecipeError when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise RecipeError(f"The endpoint cannot listen on {host}:{port}: {error}. Choose another port.") from error
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=int(_CLOSE_S)
    )
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    name = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{name}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * _CLOSE_S):
                await task
        listener.close()
