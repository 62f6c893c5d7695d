"""``rock run``: the training runs that were reported, and where every episode of one ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rock.cli._output import JsonOption, age, console, duration, escape, print_json, say, table

if TYPE_CHECKING:
    from rock.sdk import LedgerView, RunView

app = typer.Typer(no_args_is_help=True, help="Look at training runs and their ledgers.")

STATUS_STYLE = {
    "completed": "green",
    "failed": "bold red",
    "interrupted": "yellow",
    "paused": "yellow",
    "training": "bold green",
}


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the runs, the newest first.

    Examples:
      rock run list
      rock run list --json
    """
    from rock.cli._client import ask

    runs = ask(lambda rock: rock.runs())
    if as_json:
        print_json(runs)
        return
    if not runs:
        say("No runs. `rock train RECIPE` begins one.")
        return
    made = table("run", "name", "status", "step", "began", "heard of", "detail")
    for run in runs:
        made.add_row(
            run.id,
            escape(run.name),
            _status(run),
            f"{run.step} of {run.total_steps}" if run.total_steps else str(run.step),
            f"{age(run.created_at)} ago",
            f"{age(run.updated_at)} ago",
            escape(run.detail),
        )
    console().print(made)


@app.command()
def show(run: Annotated[str, typer.Argument(help="Id of a run.")], as_json: JsonOption = False) -> None:
    """Show a run: its status, its latest numbers and its summary.

    Examples:
      rock run show run-1f2e3d4c5b
    """
    from rock.cli._client import ask

    view = ask(lambda rock: rock.run(run))
    if as_json:
        print_json(view)
        return
    rows = {
        "name": escape(view.name),
        "status": _status(view),
        "detail": escape(view.detail),
        "step": f"{view.step} of {view.total_steps}" if view.total_steps else str(view.step),
        "began": f"{view.created_at.astimezone():%Y-%m-%d %H:%M:%S}, {age(view.created_at)} ago",
        "heard of": f"{age(view.updated_at)} ago",
        **{escape(name): escape(_short(value)) for name, value in view.summary.items()},
    }
    out = console()
    out.print(f"[bold]{view.id}[/]")
    width = max(map(len, rows))
    for name, value in rows.items():
        if value:
            out.print(f"  {name:<{width}} {value}")


@app.command()
def ledger(run: Annotated[str, typer.Argument(help="Id of a run.")], as_json: JsonOption = False) -> None:
    """Show where every dispatched episode of a run ended, and what that cost.

    The accounts add up to the episodes that there are, at any moment and whatever crashed; this checks that, and exits
    with 1 if they do not.

    Examples:
      rock run ledger run-1f2e3d4c5b
      rock run ledger run-1f2e3d4c5b --json
    """
    from rock.cli._client import ask

    view = ask(lambda rock: rock.ledger(run))
    if as_json:
        print_json(view)
    else:
        _print_ledger(view)
    if not view.conserved:
        raise typer.Exit(1)


def _print_ledger(view: LedgerView) -> None:
    made = table("account", "episodes", "tokens", "sandbox time")
    for column in made.columns[1:]:
        column.justify = "right"
    for account, count in view.accounts.items():
        made.add_row(
            account.value.replace("_", " "),
            f"{count:,}",
            f"{view.tokens[account]:,}",
            duration(view.sandbox_s[account]),
            style="" if count else "dim",
        )
    made.add_section()
    booked = sum(view.accounts.values())
    made.add_row("[bold]sum", f"{booked:,}", f"{sum(view.tokens.values()):,}", duration(sum(view.sandbox_s.values())))
    out = console()
    out.print(made)
    if view.conserved:
        out.print(f"[green]conserved[/]: {view.dispatched:,} episodes, each booked once")
    else:
        out.print(
            f"[bold red]not conserved[/]: {view.dispatched:,} episodes, but {booked:,} are booked. This is a bug."
        )


def _status(run: RunView) -> str:
    style = STATUS_STYLE.get(run.status, "")
    return f"[{style}]{run.status}[/]" if style else run.status


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
