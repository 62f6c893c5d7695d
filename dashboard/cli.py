"""``rock dashboard``: serve the page on this machine."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from dashboard import server
from dashboard.requirements import require_page
from dashboard.server import Served
from rock.sdk import PlatformUnavailable
from rock.sdk.home import resolve_url

DEFAULT_PORT = 8501


def dashboard(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Anything but loopback lets others read along.")
    ] = "127.0.0.1",
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="Platform to show. Default: $ROCK_URL, else the one that runs here.", show_default=False
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return at once and keep serving.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the dashboard that runs from this state directory.")
    ] = False,
) -> None:
    """Show the fleet, the runs and every episode in a browser.

    Serves until Ctrl-C, or in the background with -d. Needs no running platform: the page says when there is none
    and fills as soon as one answers. The API key, if the platform has one, is taken from $ROCK_KEY.
    """
    out = Console(highlight=False, soft_wrap=True)
    if stop:
        ended = server.stop()
        out.print(f"Stopped the dashboard at {ended.url}." if ended else "No dashboard runs from this state directory.")
        return
    already = server.running()
    if already is not None:
        out.print(f"A dashboard already runs: [bold]{already.url}[/]  (pid {already.pid})")
        out.print("Stop it with: rock dashboard --stop", style="dim")
        return
    require_page()
    if host not in server.LOOPBACK:
        out.print(f"[yellow]Listening on {host}: everybody who reaches this address can read the page.[/]")
    if detach:
        _, served = server.start(host, port, url)
        server.record(served)
        _announce(out, served, url)
        out.print(f"Stop it with: rock dashboard --stop   (log: {server.log_path()})", style="dim")
        return
    raise typer.Exit(_serve(out, host, port, url))


def _serve(out: Console, host: str, port: int, url: str | None) -> int:
    """Serve until a signal; the exit code."""
    started = None
    try:
        _catch_signals()
        started = server.start(host, port, url)
        child, served = started
        server.record(served)
        _announce(out, served, url)
        out.print("Ctrl-C stops it.", style="dim")
        code = child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if started is not None:
            server.end(started[0])
            server.forget(started[1])
    if code:
        out.print(f"The dashboard ended by itself (exit code {code}); see {server.log_path()}.")
    return 1 if code else 0


def _announce(out: Console, served: Served, url: str | None) -> None:
    out.print(f"Dashboard: [bold]{served.url}[/]")
    try:
        out.print(f"Platform:  {resolve_url(url)}")
    except PlatformUnavailable as error:
        out.print(f"Platform:  none yet. {error}", markup=False)


def _catch_signals() -> None:
    """A terminal that closes, or a plain kill, ends the child as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
