"""Commands that other packages add through the entry-point group ``rock.commands``: a function or a Typer app each.

The name of an entry point is that of the command; ``GROUP.NAME`` adds it to a group of commands that there is already,
so that ``run.replay`` becomes ``rock run replay``.
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
    "run.replay": "Redo a run's learner steps from its event log and compare the weights.",
    "run.rhythm": "Show what the policy attended to: preplan tokens and anchors.",
    "run.serve": "Serve the policy of a run as an OpenAI-compatible endpoint.",
    "env.make-swe": "Make SWE-bench instances of ordinary packages: one bug each.",
    "train": "Train a model by reinforcement learning, from a recipe.",
    "dashboard": "Show fleet, runs and episodes in a browser.",
    "report": "Write a run into one file: curves, ledger, incidents, recipe.",
}

EXTRAS = {"env.make-swe": "swebench", "report": "dashboard", "run.replay": "train", "run.serve": "train"}
"""Where the extra that a command needs is not called like the command."""


def entry_points() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)


def add_to(app: typer.Typer) -> None:
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    for entry in entry_points():
        group, _, name = entry.name.rpartition(".")
        target = groups.get(group) if group else app
        if target is None:  # of a newer platform than this one
            continue
        text = KNOWN.get(entry.name, f"Added by {entry.module.partition('.')[0]}.")
        target.command(
            name,
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
            target(args=list(ctx.args), prog_name=f"rock {_words(entry)}")

    return run


def _words(entry: importlib.metadata.EntryPoint) -> str:
    return entry.name.replace(".", " ")


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
        extra = entry.extras[0] if entry.extras else EXTRAS.get(entry.name, entry.name)
        raise RuntimeUnavailable(
            f"`rock {_words(entry)}` needs {error.name}, which is not installed here.",
            hint=f"Install it with: {sys.executable} -m pip install '{package}[{extra}]'",
        ) from error


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # loaded by other means than a file
        return True
    except ModuleNotFoundError:  # an import hook's own refusal
        return False
