"""Commands that other packages add through the entry-point group ``rock.commands``: a function or a Typer app each.

Nothing of them is imported until one is run, so that ``rock --help`` needs neither torch nor streamlit.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        with _naming_the_extra(entry):
            target = entry.load()
            if not isinstance(target, typer.Typer):
                app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
                app.command()(target)
                target = app
            target(args=list(ctx.args), prog_name=f"rock {entry.name}")

    return run


@contextmanager
def _naming_the_extra(entry: importlib.metadata.EntryPoint) -> Iterator[None]:
    """A package that is not here at all, missed when the command is loaded or while it runs, raises RuntimeUnavailable
    with the extra to install. A missing part of a package that is here, such as our own, is a bug and stays one."""
    from rock.domain.errors import RuntimeUnavailable

    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or _is_here(error.name.partition(".")[0]):
            raise
        package = entry.dist.name if entry.dist else "rock-roll"
        extra = entry.extras[0] if entry.extras else entry.name
        raise RuntimeUnavailable(
            f"`rock {entry.name}` needs {error.name}, which is not installed here.",
            hint=f"Install it with: {sys.executable} -m pip install '{package}[{extra}]'",
        ) from error


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded by other means than a file
        return True
    except ModuleNotFoundError:  # an import hook's own refusal
        return False
