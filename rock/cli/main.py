"""Puts the commands together: ``rock …``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rock.cli import (
    _contributed,
    _texts,
    doctor,
    down,
    env,
    events,
    exec_,
    image,
    key,
    logs,
    node,
    ps,
    quarantine,
    run,
    sandbox,
    top,
    up,
    version,
)
from rock.cli._errors import told_to_people

app = typer.Typer(
    name="rock",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

PLATFORM = "Platform"
SANDBOXES = "Sandboxes"
ENVIRONMENTS = "Environments and images"


@app.callback()
def root(
    url: Annotated[str, typer.Option(help="Address of the platform to talk to.", envvar="ROCK_URL")] = "",
    home: Annotated[
        Path | None, typer.Option(help="Directory of the platform's state.", envvar="ROCK_HOME", show_default="~/.rock")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="ROCK_DEBUG")] = False,
) -> None:
    """Sandboxes that stay alive, for agents that learn in them.

    [bold]rock up -d[/] starts the platform on this machine, [bold]rock ps[/] shows what runs, [bold]rock down[/] stops
    it with everything it started. [bold]rock doctor[/] says what this machine lacks.

    The platform is found through --url or ROCK_URL, else through the state directory. An API key goes in ROCK_KEY.
    """
    # The environment is how every part, also one in another process, learns of them.
    for name, value in (("ROCK_URL", url), ("ROCK_HOME", str(home or "")), ("ROCK_DEBUG", "1" if debug else "")):
        if value:
            os.environ[name] = value


app.command("up", rich_help_panel=PLATFORM)(up.up)
app.command("down", rich_help_panel=PLATFORM)(down.down)
app.command("doctor", rich_help_panel=PLATFORM)(doctor.doctor)
app.command("version", rich_help_panel=PLATFORM)(version.version)
app.add_typer(node.app, name="node", rich_help_panel=PLATFORM)
app.add_typer(key.app, name="key", rich_help_panel=PLATFORM)
app.command("top", rich_help_panel=PLATFORM)(top.top)
app.command("ps", rich_help_panel=SANDBOXES)(ps.ps)
app.command("inspect", rich_help_panel=SANDBOXES)(sandbox.inspect)
app.command("logs", rich_help_panel=SANDBOXES)(logs.logs)
app.command("events", rich_help_panel=SANDBOXES)(events.events)
app.command("exec", rich_help_panel=SANDBOXES, context_settings={"allow_interspersed_args": False})(exec_.exec_)
app.add_typer(sandbox.app, name="sandbox", rich_help_panel=SANDBOXES)
app.add_typer(quarantine.app, name="quarantine", rich_help_panel=SANDBOXES)
app.add_typer(run.app, name="run", rich_help_panel=PLATFORM)
app.add_typer(env.app, name="env", rich_help_panel=ENVIRONMENTS)
app.add_typer(image.app, name="image", rich_help_panel=ENVIRONMENTS)
_contributed.add_to(app)
_texts.reflow(app)


def main() -> None:
    """The console script."""
    with told_to_people():
        app(prog_name="rock")


if __name__ == "__main__":
    main()
