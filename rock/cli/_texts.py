"""Help texts: written as docstrings of 120 columns, shown in a terminal of any width."""

from __future__ import annotations

import inspect

import typer


def reflow(app: typer.Typer) -> None:
    """Give every command its docstring with each paragraph as one line, which the help then wraps.

    Indented lines (examples) stay as they are.
    """
    for command in app.registered_commands:
        if command.callback is not None and not command.help:
            command.help = paragraphs(inspect.getdoc(command.callback) or "")
    if app.registered_callback is not None and app.registered_callback.callback is not None:
        app.registered_callback.help = paragraphs(inspect.getdoc(app.registered_callback.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            reflow(group.typer_instance)


def paragraphs(text: str) -> str:
    """Lines of a paragraph joined; lines that are indented, and the line that announces them, on their own."""
    out: list[str] = []
    joining = False
    for line in text.splitlines():
        indented = line.startswith(" ")
        if joining and line and not indented:
            out[-1] += f" {line}"
        else:
            out.append(line)
        joining = bool(line) and not indented
    return "\n".join(out)
