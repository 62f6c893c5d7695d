"""What commands print: tables for people, JSON for programs, and the words and colours both share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table

    from rock.wire.models import SandboxView

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]

STATE_STYLE = {
    "requested": "dim",
    "starting": "cyan",
    "ready": "green",
    "leased": "bold green",
    "suspect": "yellow",
    "released": "dim",
    "failed": "bold red",
    "gone": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """A console; wide when the output is no terminal, so that a pipe gets whole lines."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=max(made.width, 200))


def table(*columns: str, title: str = "") -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def say(text: str) -> None:
    """A line for the person, markup allowed."""
    console().print(text)


def print_json(value: BaseModel | Sequence[BaseModel] | Sequence[Any] | dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def age(at: datetime | None) -> str:
    """How long ago, in the largest unit that says something."""
    if at is None:
        return ""
    return duration((datetime.now(UTC) - at).total_seconds())


def duration(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def size(bytes_: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if bytes_ < 1024:
            return f"{bytes_:.0f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} TiB"


def escape(text: str) -> str:
    """Text from elsewhere, safe to print where markup is read."""
    from rich.markup import escape as rich_escape

    return rich_escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))


def state(word: str) -> str:
    style = STATE_STYLE.get(word, "")
    return f"[{style}]{word}[/]" if style else word


def notes(view: SandboxView) -> str:
    """What a person should know of a sandbox: loosened security, and why it failed."""
    parts = [f"[yellow]{escape(', '.join(view.spec.loosened))}[/]"] if view.spec.loosened else []
    if view.evidence is not None:
        facts: Iterable[str] = (
            view.evidence.cause,
            view.evidence.detail,
            f"exit code {view.evidence.exit_code}" if view.evidence.exit_code is not None else "",
            "out of memory" if view.evidence.oom_killed else "",
        )
        parts.append(f"[red]{escape(', '.join(fact for fact in facts if fact))}[/]")
    return "; ".join(parts)
