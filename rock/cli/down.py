"""``rock down``: the platform and everything it owns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rock.cli._output import say


def down(
    home: Annotated[
        Path | None, typer.Option(help="Directory of the platform's state.", envvar="ROCK_HOME", show_default="~/.rock")
    ] = None,
) -> None:
    """Stop the platform of this state directory and remove every sandbox it started.

    Its guardian, which would start it again, is ended first. It works as well while the platform is still starting,
    and when it was killed and only its sandboxes are left: they are found by the label that each carries. Sandboxes of
    other platforms on this machine are not touched. Runs, episodes and built environments stay.

    Examples:
      rock down
      rock down --home /data/rock
    """
    import asyncio

    from rock.cli import _daemon, _state
    from rock.cli._sweep import sweep
    from rock.sdk.home import rock_home

    directory = rock_home(home)
    processes = _state.processes(directory)
    if processes:
        url = next((one.url for one in processes if one.url), "")
        pids = ", ".join(str(one.pid) for one in processes)
        say(f"stopping the platform {f'at {url}' if url else 'that is starting'} (pid {pids})")
        if not _daemon.stop(processes):
            say(f"[yellow]it did not stop within {_daemon.STOP_TIMEOUT_S:g} s and was killed[/]")
    removed = 0
    if directory.exists():
        with _state.serving(directory, as_server=False):
            removed = asyncio.run(sweep(directory))
    if removed:
        say(f"removed {removed} sandbox{'es' if removed != 1 else ''} that had been left behind")
    if processes:
        say("stopped")
    elif not removed:
        say("nothing runs")
