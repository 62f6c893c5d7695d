"""``rock up``: the platform on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import escape, say

if TYPE_CHECKING:
    from rock.cli._settings import Settings
    from rock.sdk.home import ServerFile

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
RUNTIMES = ("auto", "docker", "bubblewrap", "fake")


DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Go on in the background.")]
HostOption = Annotated[
    str, typer.Option(help="Address to listen on. Elsewhere than loopback needs ROCK_KEY, or a stored key.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for a free one.")]
RuntimeOption = Annotated[str, typer.Option(help="auto, docker, bubblewrap or fake (for tests of the platform).")]
DatabaseOption = Annotated[
    str, typer.Option(help="URL of the database; none for SQLite in the state directory.", envvar="ROCK_DATABASE")
]
CapacityOption = Annotated[int, typer.Option(min=0, help="Sandboxes at most; 0 for what the machine can hold.")]
PoolOption = Annotated[
    list[str], typer.Option("--pool", metavar="NAME=N", help="Keep N sandboxes of an environment ready.")
]
NodesOption = Annotated[
    int, typer.Option(min=0, max=64, help="Nodes, each a process of its own; 0 for one in the platform's process.")
]
RayOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Make every machine of this Ray cluster a node; auto for the local one.")
]
HomeOption = Annotated[
    Path | None, typer.Option(help="Directory of the platform's state.", envvar="ROCK_HOME", show_default="~/.rock")
]


def up(
    detach: DetachOption = False,
    host: HostOption = "127.0.0.1",
    port: PortOption = 7625,
    runtime: RuntimeOption = "auto",
    database: DatabaseOption = "",
    capacity: CapacityOption = 0,
    pool: PoolOption = [],  # noqa: B006 - typer copies it
    nodes: NodesOption = 0,
    ray: RayOption = "",
    home: HomeOption = None,
) -> None:
    """Start the platform on this machine: its control plane, its API and one node.

    Sandboxes run under Docker, or under bubblewrap where no Docker engine can be used. What an earlier platform of the
    same state directory left running is taken over. If one runs already, this says where and changes nothing.

    With --nodes a node that crashes takes none of the others with it; with --ray sandboxes run on every machine of the
    cluster, and clients speak to them directly. `rock node list` shows the nodes.

    In the foreground, Ctrl-C stops the platform and removes its sandboxes; with -d, `rock down` does. Should the
    platform's process die, a small guardian process starts it again: episodes that are under way go on meanwhile.

    Examples:
      rock up -d
      rock up -d --pool alfworld=8
      rock up -d --nodes 4
      rock up -d --ray 10.0.0.1:6379
      rock up --port 8000 --runtime bubblewrap --home /data/rock
      ROCK_KEY_FILE=key rock up -d --host 0.0.0.0
      ROCK_DATABASE_PASSWORD_FILE=password rock up -d --database postgresql://rock@db.example.org/rock
      rock key create me --scope admin && rock down && rock up -d --host 0.0.0.0
    """
    from rock.cli._settings import Settings
    from rock.sdk.home import rock_home
    from rock.store.database import with_password
    from rock.wire.secrets import secret

    if runtime not in RUNTIMES:
        raise typer.BadParameter(f"{runtime!r} is none of {', '.join(RUNTIMES)}", param_hint="--runtime")
    if nodes and ray:
        raise typer.BadParameter("nodes are either processes here or Ray's machines, not both", param_hint="--ray")
    directory, pools = rock_home(home), _pools(pool)
    os.environ["ROCK_HOME"] = str(directory)
    database = with_password(database, secret("ROCK_DATABASE_PASSWORD"))
    _run(Settings(directory, host, port, runtime, database, capacity, pools, nodes=nodes, ray=ray), detach)


def _run(settings: Settings, detach: bool) -> None:
    from rock.cli import _daemon
    from rock.cli._guardian import GUARDIAN_ENV

    if GUARDIAN_ENV in os.environ:
        from rock.cli._server import serve

        serve(settings)
        return
    _refuse_open_door(settings)
    if (running := _daemon.running_soon(settings.home)) is not None:
        _already(running)
    elif detach:
        _start_or_find(settings)
    else:
        _daemon.become_guardian(settings)


def _start_or_find(settings: Settings) -> None:
    """Start it; if somebody else was quicker, that one will do."""
    from rock.cli import _daemon
    from rock.domain.errors import Conflict

    try:
        _started(_daemon.start(settings), settings)
    except Conflict:
        running = _daemon.running_soon(settings.home)
        if running is None:
            raise
        _already(running)


def _pools(items: list[str]) -> dict[str, int]:
    pools = {}
    for item in items:
        name, found, count = item.partition("=")
        if not name or not found or not count.isdigit():
            raise typer.BadParameter(f"{item!r} is not NAME=NUMBER, such as alfworld=8", param_hint="--pool")
        pools[name] = int(count)
    return pools


def _refuse_open_door(settings: Settings) -> None:
    """Before anything is started; the server, which looks again, would say the same seconds later."""
    from rock.wire.secrets import secret

    if settings.host in LOOPBACK or secret("ROCK_KEY"):
        return
    from rock.cli._keys import admin_keys

    if not admin_keys(settings):
        raise typer.BadParameter(
            f"{settings.host} can be reached from other machines; set ROCK_KEY to a secret, which clients then need, "
            "or make a key first, on the loopback: `rock key create me --scope admin`",
            param_hint="--host",
        )


def _already(server: ServerFile) -> None:
    say(
        f"The platform already runs at [bold]{server.url}[/] "
        f"(pid {server.pid}, since {server.started_at.astimezone():%Y-%m-%d %H:%M:%S}). Its settings are unchanged; "
        "`rock down` stops it."
    )


def _started(server: ServerFile, settings: Settings) -> None:
    from rock.cli._client import ask_at
    from rock.cli._server import fallback_reason
    from rock.sdk import Unauthorized

    try:
        health = ask_at(server.url, lambda rock: rock.health())
    except Unauthorized:
        say(f"The platform runs at [bold]{server.url}[/] (pid {server.pid}). It has keys: set ROCK_KEY to one of them.")
        return
    say(
        f"The platform runs at [bold]{server.url}[/] "
        f"(pid {health.pid}, runtime {health.runtime}, state in {settings.home})."
    )
    if reason := fallback_reason(settings.runtime, health.runtime):
        say(f"[yellow]{reason}[/]")
    if health.detail:
        say(f"[yellow]{escape(health.detail)}[/]")
