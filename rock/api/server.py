"""Serving the API: one address, taken before anything else is said; ends on a signal or on ``POST /v1/shutdown``.

Invariants: a bind outside the loopback without a key is refused; when ``on_ready`` is called the address answers; when
``serve`` returns nobody is waiting for an answer any more. Signals only end the serving: what to do with the sandboxes
is the caller's to decide afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from rock.control.control import Control
from rock.domain.errors import Conflict, InvalidRequest, RockError

log = logging.getLogger(__name__)

_GRACE_S = 5


class _Server(uvicorn.Server):
    """Without uvicorn's own signal handling, which would end the process before the sandboxes are looked after."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 7625,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or a shutdown request. ``port`` 0 takes a free one; ``on_ready`` is told the URL.

    Raises: Conflict (the port is in use), InvalidRequest (not the loopback and no key; an address that is not ours).
    """
    control: Control = app.state.control
    app.state.reachable = not is_loopback(host)
    if app.state.reachable and not app.state.key and not len(control.keys):
        raise InvalidRequest(
            f"refusing to listen on {host} without a key: anybody who reaches it could run commands here",
            hint="Set ROCK_KEY to a long secret, or listen on 127.0.0.1 (and make keys there: `rock key create`).",
        )
    listener = _listen(host, port)
    bound = listener.getsockname()[1]
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_S,
            timeout_keep_alive=60,
        ),
        lambda: _announce(_url(host, bound), on_ready),
    )
    with _signals(control):
        stopper = asyncio.create_task(_stop_when_asked(control, server))
        try:
            await server.serve(sockets=[listener])
        finally:
            stopper.cancel()
            await asyncio.gather(stopper, return_exceptions=True)
            listener.close()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, because asyncio turns Nagle's delay (40 ms per answer) off only for sockets that name it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _refused(host, port, error) from error
    return listener


def _refused(host: str, port: int, error: OSError | OverflowError) -> RockError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return Conflict(
            f"port {port} on {host} is in use",
            hint=f"Another platform may be running (`rock ps`); or choose another port: --port {port + 1}, or 0.",
        )
    if number in {errno.EACCES, errno.EPERM}:
        return InvalidRequest(f"this user may not listen on port {port}", hint="Choose one above 1023.")
    return InvalidRequest(f"cannot listen on {host}:{port}: {error}", hint="Use an address of this machine.")


@contextlib.contextmanager
def _signals(control: Control) -> Iterator[None]:
    """SIGTERM and SIGINT ask for the shutdown. Elsewhere than in the main thread there are none to be had."""
    loop = asyncio.get_running_loop()
    added = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
            loop.add_signal_handler(number, control.request_shutdown)
            added.append(number)
    try:
        yield
    finally:
        for number in added:
            loop.remove_signal_handler(number)


async def _stop_when_asked(control: Control, server: uvicorn.Server) -> None:
    await control.shutdown_requested.wait()
    server.should_exit = True


def _announce(url: str, on_ready: Callable[[str], None] | None) -> None:
    log.info("serving url=%s", url)
    if on_ready is not None:
        on_ready(url)
