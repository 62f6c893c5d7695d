"""``rock key``: who may use the platform, for what, and how much of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, age, console, escape, print_json, say, table

if TYPE_CHECKING:
    from rock.sdk import KeyView, Rock

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

SCOPES = ("read", "run", "admin")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, such as the user or the training run.")],
    scope: Annotated[str, typer.Option(help="read, run or admin.")] = "run",
    max_leases: Annotated[int, typer.Option(min=0, help="Leases it may hold at once; 0: no limit.")] = 0,
    max_requests: Annotated[int, typer.Option(min=0, help="Requests it may have under way at once; 0: no limit.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print its secret, this once.

    A key of scope read looks, run also takes sandboxes and reports runs, admin does everything. As soon as there is a
    key, every request needs one, so the first must be an admin's. Clients give the secret in ROCK_KEY.

    Examples:
      rock key create me --scope admin
      rock key create trainer --max-leases 32
      ROCK_KEY=$(rock key create dashboard --scope read)
    """
    from rock.cli._client import ask
    from rock.sdk import InvalidRequest

    if scope not in SCOPES:
        raise InvalidRequest(f"{scope!r} is no scope.", hint=f"Scopes: {', '.join(SCOPES)}.")
    key = ask(
        lambda rock: rock.create_key(name, scope=scope, max_leases=max_leases, max_requests=max_requests)  # type: ignore[arg-type]
    )
    if as_json:
        print_json(key)
        return
    # The secret alone on standard output, whole and without markup: for people to copy and for $(…).
    sys.stdout.write(f"{key.secret}\n")
    sys.stdout.flush()
    console(stderr=True).print(
        f"Key [bold]{key.id}[/] of scope {key.scope}. Keep the secret: it is not shown again. "
        "From now on every request needs a key, in ROCK_KEY."
    )


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that were revoked.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the keys with their scopes, limits and last use. Secrets are never shown.

    Examples:
      rock key list
      rock key list --all --json
    """
    from rock.cli._client import ask

    keys = [key for key in ask(lambda rock: rock.keys()) if every or key.revoked_at is None]
    if as_json:
        print_json(keys)
        return
    if not keys:
        say("No keys. `rock key create NAME --scope admin` makes the first.")
        return
    made = table("key", "name", "scope", "leases", "requests", "made", "last used", "")
    for key in keys:
        made.add_row(*_row(key))
    console().print(made)


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        key.id,
        escape(key.name),
        f"[bold]{key.scope}[/]" if key.scope == "admin" else key.scope,
        str(key.max_leases or ""),
        str(key.max_requests or ""),
        f"{age(key.created_at)} ago",
        f"{age(key.last_used_at)} ago" if key.last_used_at else "never",
        f"[red]revoked {age(key.revoked_at)} ago[/]" if key.revoked_at else "",
    )


@app.command()
def revoke(
    keys: Annotated[list[str], typer.Argument(help="Ids of keys.", metavar="KEY...")],
) -> None:
    """Revoke keys: they are refused from now on. What was leased with them goes on until it ends.

    Examples:
      rock key revoke key-0123456789
    """
    from rock.cli._client import ask

    async def end(rock: Rock) -> None:
        for key_id in keys:
            await rock.revoke_key(key_id)
            say(f"revoked {escape(key_id)}")

    ask(end)
