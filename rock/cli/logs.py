"""``rock logs``: the last lines of a sandbox or of the platform itself."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

FOLLOW_EVERY_S = 0.3


def logs(
    sandbox: Annotated[str, typer.Argument(help="Id of a sandbox; none for the platform's own log.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing (platform's log only).")] = False,
) -> None:
    """Print the last lines of a sandbox's guest and environment, or of the platform.

    A sandbox's log is kept after its death, as part of the evidence. The platform writes its own log in
    $ROCK_HOME/logs when it was started with -d.

    Examples:
      rock logs
      rock logs -f
      rock logs sb-0123456789 -n 20
    """
    if sandbox:
        if follow:
            raise typer.BadParameter("works for the platform's own log only", param_hint="--follow")
        from rock.cli._client import ask

        view = ask(lambda rock: rock.logs(sandbox, lines=lines))
        sys.stdout.writelines(f"{line}\n" for line in view.lines)
        return
    from rock.cli._state import log_path
    from rock.sdk import NotFound
    from rock.sdk.home import rock_home

    path = log_path(rock_home())
    if not path.exists():
        raise NotFound(f"There is no log at {path}.", hint="Only a platform started with `rock up -d` writes one.")
    _tail(path, lines, follow)


def _tail(path: Path, lines: int, follow: bool) -> None:
    with path.open(errors="replace") as file:
        sys.stdout.writelines(deque(file, maxlen=lines))
        while follow:
            sys.stdout.flush()
            if line := file.readline():
                sys.stdout.write(line)
            else:
                time.sleep(FOLLOW_EVERY_S)
