"""A platform for a program that needs one: the one that runs, or one that is started for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rock.domain.errors import DeadlineExceeded, PlatformUnavailable, RockError, Unauthorized
from rock.sdk.client import Rock
from rock.sdk.home import DEFAULT_HOST, DEFAULT_PORT, DEFAULT_URL, is_default, read_server, rock_home

# `rock up -d` itself waits until the platform is healthy and says why it is not; this only bounds a hanging process.
START_TIMEOUT_S = 120.0
_PROBE_S = 2.0
# Ending a platform that is half up includes removing its first sandboxes.
_PATIENCE_S = 70.0
_INTERRUPT_EVERY_S = 2.0


class Launched(NamedTuple):
    """A platform that answers: its address, and whether it was started for this caller, who should then stop it."""

    url: str
    started: bool


def ensure_platform(
    home: str | Path | None = None,
    *,
    url: str | None = None,
    runtime: str = "auto",
    capacity: int | None = None,
    pools: Mapping[str, int] | None = None,
    database: str | None = None,
    port: int | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Launched:
    """The address of a running platform; starts one (as ``rock up -d``) if none runs.

    >>> from rock.sdk import RockSync, ensure_platform
    >>> url, started = ensure_platform(pools={"alfworld": 8})   # doctest: +SKIP
    >>> with RockSync(url) as rock:   # doctest: +SKIP
    ...     print(rock.health().runtime)

    With ``url``, or ``ROCK_URL`` set, that platform must answer and none is started. Else the one that runs from
    ``home`` (default ``$ROCK_HOME``), else the one at the default address if ``home`` is ``~/.rock``, else a new one
    with the given ``runtime``, ``capacity``, warm ``pools`` (environment: sandboxes kept ready), ``database`` and
    ``port`` (default: 7625, or a free one if that is taken). A platform that is already running keeps its settings.

    Blocks: use ``asyncio.to_thread`` in asynchronous code. To stop what was started: ``rock down`` or
    ``RockSync(url).shutdown()``.

    Raises: PlatformUnavailable (platform: the given one does not answer, or the new one did not come up, with its last
    words in ``cause``), DeadlineExceeded (platform: it was not up within ``timeout_s``).
    """
    wanted = url or os.environ.get("ROCK_URL")
    if wanted:
        if _healthy(wanted):
            return Launched(wanted.rstrip("/"), False)
        raise PlatformUnavailable(
            f"No platform answers at {wanted}.", hint="Start it there with `rock up`, or leave ROCK_URL unset."
        )
    directory = rock_home(home)
    server = read_server(directory)
    if server is not None and server.alive and _healthy(server.url):
        return Launched(server.url, False)
    if is_default(directory) and _healthy(DEFAULT_URL):
        return Launched(DEFAULT_URL, False)
    argv = [sys.executable, "-m", "rock.cli", "up", "--detach", "--home", str(directory), "--runtime", runtime]
    argv += ["--port", str(_default_or_free_port() if port is None else port)]
    if capacity is not None:
        argv += ["--capacity", str(capacity)]
    for name, count in (pools or {}).items():
        argv += ["--pool", f"{name}={count}"]
    _start(argv, database, timeout_s)
    server = read_server(directory)
    if server is None or not server.alive:
        raise PlatformUnavailable(
            f"The platform started from {directory} but is gone again.", hint=f"Look at {directory / 'logs'}."
        )
    return Launched(server.url, True)


def _start(argv: list[str], database: str | None, timeout_s: float) -> None:
    # By the environment: the URL of a database may hold a password, and arguments can be read by everyone.
    environ = os.environ if database is None else {**os.environ, "ROCK_DATABASE": database}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _interrupt(process)
        raise DeadlineExceeded(
            f"The platform did not come up within {timeout_s:g} s.", hint="Run `rock up` in a terminal to see why."
        ) from error
    except BaseException:
        _interrupt(process)
        raise
    if process.returncode != 0:
        raise PlatformUnavailable(
            f"The platform could not be started. {(err.strip() or out.strip()).removeprefix('Error: ')}",
            hint="`rock doctor` says what is missing on this machine.",
        )


def _interrupt(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C would: it then ends what it had begun to start, so that no platform comes up behind our back.

    Again and again, because an interrupt that meets a module being imported may be lost in it."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_INTERRUPT_EVERY_S)
            return
    process.kill()
    process.communicate()


def _healthy(url: str) -> bool:
    async def ask() -> bool:
        try:
            async with Rock(url, timeout_s=_PROBE_S, retry_s=0) as rock:
                await rock.health()
        except Unauthorized:  # it is there; another start would not help who lacks its key
            raise
        except RockError:
            return False
        return True

    return asyncio.run(ask())


def _default_or_free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((DEFAULT_HOST, DEFAULT_PORT))
        except OSError:
            return 0
    return DEFAULT_PORT
