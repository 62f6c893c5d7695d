"""``rock events``: what happened, and what happens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, console, escape, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from rock.sdk import EventView, Rock


def events(
    kind: Annotated[list[str], typer.Option("--kind", "-k", help="Only events of this kind; may be repeated.")] = [],  # noqa: B006 - typer copies it
    run: Annotated[str, typer.Option("--run", help="Only events of this training run.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=1000, help="How many of the past.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing as they happen.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what happened on the platform, oldest first: sandboxes that failed, leases that ended, runs that began.

    With --follow it goes on until Ctrl-C, through restarts of the platform; with --json, too, one object per line.

    Examples:
      rock events
      rock events -f --kind sandbox.failed --kind lease.lost
      rock events --run run-1f2e3d4c5b --json
    """
    from rock.cli._client import ask

    async def main(rock: Rock) -> None:
        # Of several kinds each is asked for by itself: the list knows one at a time.
        found = [e for k in kind or [""] for e in await rock.events(limit=max(lines, 1), kind=k, run_id=run)]
        past = sorted(found, key=lambda event: event.id)
        shown = past[-lines:] if lines else []
        if not follow:
            _print_all(shown, as_json)
            return
        out = console()
        for event in shown:
            _print_one(out, event, as_json)
        async for event in rock.follow(kind, run_id=run, after=past[-1].id if past else None):
            _print_one(out, event, as_json)

    ask(main)


def _print_all(events: list[EventView], as_json: bool) -> None:
    if as_json:
        print_json(events)
        return
    made = table("when", "event", "of", "node", "run", "detail")
    for event in events:
        made.add_row(
            f"{event.at.astimezone():%m-%d %H:%M:%S}",
            event.kind,
            escape(event.subject),
            escape(event.node),
            escape(event.run_id),
            escape(event.detail),
        )
    console().print(made)


def _print_one(out: Console, event: EventView, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()
        return
    text = f"[dim]{event.at.astimezone():%H:%M:%S}[/] [bold]{event.kind}[/] {escape(event.subject)} "
    out.print(f"{text}[dim]{escape(event.node)}[/] {escape(event.detail)}".rstrip())
