"""The process that serves: the platform of a state directory from its lock to its last sandbox.

Invariants: the lock and the port are had before anything is started; ``server.json`` names an address that answers, or
one that its guardian brings back; a guardian that dies gets a successor; however serving ends in order, what the
platform owns is removed, unless it was asked to leave the sandboxes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass, replace

import psutil

from rock.api.app import create_app
from rock.api.log_lines import log_to_stderr
from rock.api.server import serve as serve_api
from rock.cli import _daemon, _state
from rock.cli._guardian import GUARDIAN_ENV, RESTARTED_ENV
from rock.cli._output import say
from rock.cli._settings import Settings
from rock.cluster.local import Platform
from rock.domain.backoff import Backoff, BackoffPolicy
from rock.domain.errors import Conflict, RockError
from rock.sdk.home import read_server, server_path

log = logging.getLogger(__name__)

# How soon a guardian that died has a successor.
_LOOK_S = 1.0


def serve(settings: Settings) -> None:
    """Until a signal or a shutdown request. Raises Conflict (port or home in use) and all that Platform.open raises."""
    log_to_stderr(debug=bool(os.environ.get("ROCK_DEBUG")))
    guarding = Guarding.of_this_process()
    if guarding.why and settings.port == 0:
        settings = replace(settings, port=_state.previous_port(settings.home))
    with _state.serving(settings.home, again=bool(guarding.why)):
        _refuse_taken_port(settings.host, settings.port)
        try:
            asyncio.run(_run(settings, guarding))
        except asyncio.CancelledError:
            say("Stopped while it was starting.")
            sys.exit(128 + signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Guarding:
    """What the guardian told this process when it started it."""

    guardian: tuple[int, float] = (0, 0.0)
    """Its pid and start time; zeros for none."""
    why: str = ""
    """Why this process is another one's successor; empty at the first start."""

    @classmethod
    def of_this_process(cls) -> Guarding:
        """Takes it out of the environment, which what we start inherits."""
        pid, _, started_s = os.environ.pop(GUARDIAN_ENV, "").partition(" ")
        why = os.environ.pop(RESTARTED_ENV, "")
        return cls((int(pid), float(started_s)), why) if pid and int(pid) == os.getppid() else cls(why=why)


async def _run(settings: Settings, guarding: Guarding) -> None:
    starting = asyncio.current_task()
    assert starting is not None
    # Until the API takes the signals over. Left to itself SIGTERM would end the process with containers half made.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, starting.cancel)
    platform = await Platform.open(settings.platform())
    keep = False
    guarded = asyncio.create_task(_keep_guarded(settings, platform, guarding))
    if guarding.why:
        platform.control.note("control.restarted", guarding.why)
    try:
        await serve_api(
            create_app(platform.control),
            settings.host,
            settings.port,
            lambda url: _ready(settings, platform, url, guarding),
        )
        keep = platform.control.keep_sandboxes
    finally:
        guarded.cancel()
        await asyncio.gather(guarded, return_exceptions=True)
        # From here on the address no longer answers.
        server_path(settings.home).unlink(missing_ok=True)
        await platform.close(keep_sandboxes=keep)


async def _keep_guarded(settings: Settings, platform: Platform, guarding: Guarding) -> None:
    """Start another guardian when ours has died, if we had one."""
    pid, _ = guarding.guardian
    if not pid:
        return
    backoff = Backoff(BackoffPolicy(base_s=_LOOK_S, cap_s=60.0), random.Random())
    while os.getppid() == pid:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_LOOK_S)
    while True:
        try:
            guardian = await asyncio.to_thread(_daemon.start_guardian, settings)
            identity = (guardian.pid, psutil.Process(guardian.pid).create_time())
            server = await asyncio.to_thread(read_server, settings.home)
            if server is not None and server.url:
                await asyncio.to_thread(_state.publish, settings.home, server.url, identity)
            platform.control.note("guardian.restarted", f"guardian {pid} died; {guardian.pid} takes its place")
            pid = guardian.pid
            while guardian.poll() is None:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_LOOK_S)
        except (RockError, psutil.NoSuchProcess) as error:
            log.warning("no other guardian could be started yet: %s", error)
        await asyncio.sleep(backoff.failed(asyncio.get_running_loop().time()))


def _ready(settings: Settings, platform: Platform, url: str, guarding: Guarding) -> None:
    _state.publish(settings.home, url, guarding.guardian)
    say(f"The platform serves at [bold]{url}[/] (runtime {platform.runtime.name}). Ctrl-C stops it.")
    if reason := fallback_reason(settings.runtime, platform.runtime.name):
        say(f"[yellow]{reason}[/]")


def fallback_reason(asked: str, got: str) -> str:
    """Why it is not Docker, if nobody asked for anything else; empty if it is."""
    if asked != "auto" or got == "docker":
        return ""
    from rock.cli._output import escape
    from rock.runtimes.docker_daemon import check_docker

    found = check_docker()
    return escape(f"Sandboxes run under {got}, not Docker: {found.detail}. {found.remedy}")


def _refuse_taken_port(host: str, port: int) -> None:
    """Before sandboxes are adopted or started for nothing. The real bind may still lose a race, and says the same."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"Port {port} on {host} is in use.",
                    hint=f"Another platform or program has it; choose another: rock up --port {port + 1} (or 0).",
                ) from error
