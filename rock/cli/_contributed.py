"""Commands that other packages add through the entry-point group ``rock.commands``: a function or a Typer app each.

Nothing of them is imported until one is run, so that ``rock --help`` needs neither torch nor streamlit.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import typer

GROUP = "rock.commands"
# What the help says of a command that is not imported; its own `--help` says the rest.
KNOWN = {
    "train": "Train a model by reinforcement learning, from a recipe.",
    "dashboard": "Show fleet, runs and episodes in a browser.",
}


def entry_points() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def add_to(app: typer.Typer) -> None:
    for entry in entry_points():
        text = KNOWN.get(entry.name, f"Added by {entry.module.partition('.')[0]}.")
        app.command(
            entry.name,
            help=text,
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            rich_help_panel="Added by other packages",
        )(_runner(entry))


def _runner(entry: importlib.metadata.EntryPoint) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        target = _load(entry)
        if not isinstance(target, typer.Typer):
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command()(target)
            target = app
        target(args=list(ctx.args), prog_name=f"rock {entry.name}")

    return run


def _load(entry: importlib.metadata.EntryPoint) -> Any:
    """The command. Raises RuntimeUnavailable naming the extra to install when an import of its own is missing."""
    from rock.domain.errors import RuntimeUnavailable

    try:
        return entry.load()
    except ModuleNotFoundError as error:
        extra = entry.extras[0] if entry.extras else entry.name
        raise RuntimeUnavailable(
            f"`rock {entry.name}` needs {error.name or error}, which is not installed here.",
            hint=f"Install it with: {sys.executable} -m pip install 'rock-roll[{extra}]'",
        ) from error
