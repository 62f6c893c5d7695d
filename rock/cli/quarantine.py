"""``rock quarantine``: what the platform refuses because it failed again and again, and letting it back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, age, console, duration, escape, print_json, say, table

if TYPE_CHECKING:
    from rock.sdk import Rock

app = typer.Typer(no_args_is_help=True, help="List and clear images and tasks that failed again and again.")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List what is refused, since when and why.

    An image gets there when four of its sandboxes in a row fail to start, or die within seconds, within a minute; a
    claim of it is then refused at once. A task gets there when its environment fails at it three times within an hour.
    Each is tried once more after a while by itself; the last column says when.

    Examples:
      rock quarantine list
      rock quarantine list --json
    """
    from rock.cli._client import ask

    views = ask(lambda rock: rock.quarantine())
    if as_json:
        print_json(views)
        return
    made = table("id", "what", "node", "failures", "since", "next try", "reason")
    now = datetime.now(UTC)
    for view in views:
        wait_s = (view.retry_at - now).total_seconds() if view.retry_at else 0.0
        made.add_row(
            escape(view.subject),
            escape(view.name),
            escape(view.node),
            str(view.failures),
            f"{age(view.since)} ago",
            f"in {duration(wait_s)}" if wait_s > 0 else "now",
            escape(view.reason),
        )
    console().print(made if views else "Nothing is in quarantine.")


@app.command()
def clear(
    subjects: Annotated[list[str], typer.Argument(help="Ids, as `rock quarantine list` shows them.", metavar="ID...")],
) -> None:
    """Let images or tasks be tried again, on every node.

    Mend what failed first: if it fails on, it is back in quarantine after the same number of failures.

    Examples:
      rock quarantine clear 0a1b2c3d4e5f
      rock quarantine clear alfworld/task-17
    """
    from rock.cli._client import ask
    from rock.sdk import NotFound

    async def work(rock: Rock) -> list[str]:
        missing = []
        for subject in subjects:
            try:
                await rock.clear_quarantine(subject)
            except NotFound:
                missing.append(subject)
            else:
                say(f"cleared {escape(subject)}")
        return missing

    if missing := ask(work):
        raise NotFound(f"Not in quarantine: {', '.join(missing)}.", hint="`rock quarantine list` shows what is.")
