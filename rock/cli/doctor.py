"""``rock doctor``: what this machine lacks, and the command that mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, console, escape, print_json, say, table

if TYPE_CHECKING:
    from rich.table import Table

    from rock.cli._checks import Check
    from rock.cli._owners import Ask, Item
    from rock.sdk.home import ServerFile

_SHOWN = 5
_REMEDY = "rock doctor --fix"
STYLE = {"ok": "green", "missing": "yellow", "blocks": "bold red"}


def doctor(
    owners: Annotated[bool, typer.Option("--owners", help="List all that takes room, and whose it is.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what has no owner.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: Python, runtimes, disk, port, browser, packages, and what has no owner.

    Each line says what was found and, where something is missing, the exact command that mends it. The exit code is 1
    if something keeps the platform from running, or if something that a platform started has no owner any more; what is
    merely missing is left to you.

    With --owners: the containers, processes, socket directories, leases and snapshots of every platform here, each
    with its owner or [bold]no owner[/]. Of a platform whose state directory cannot be seen from here (it runs in a
    container, say) only what has ended counts: what runs there ends by itself when nobody looks after it.

    Examples:
      rock doctor
      rock doctor --owners --json
      rock doctor --fix
    """
    import asyncio
    from dataclasses import asdict

    from rock.sdk.home import rock_home

    leftovers, items = asyncio.run(_leaks(rock_home(), fix))
    checks = [] if owners else asyncio.run(_checks(rock_home()))
    checks += leftovers
    if as_json:
        print_json([asdict(row) for row in (items if owners else checks)])
    elif owners:
        console().print(_owners_table(items) if items else "Nothing of any platform is on this machine.")
    else:
        made = table("check", "", "found", "to mend it")
        for check in checks:
            style = STYLE[check.verdict]
            made.add_row(check.name, f"[{style}]{check.verdict}[/]", escape(check.found), escape(check.remedy))
        console().print(made)
    if any(check.verdict == "blocks" for check in checks) or not all(item.owner for item in items):
        raise typer.Exit(1)


def _owners_table(items: Sequence[Item]) -> Table:
    made = table("what", "", "instance", "owner", "of")
    for item in items:
        owner = escape(item.owner) if item.owner else "[bold red]no owner[/]"
        made.add_row(item.kind, escape(item.id), item.instance, owner, escape(item.note))
    return made


async def _checks(home: Path) -> list[Check]:
    from rock.cli._checks import local_checks

    return [*local_checks(home), *[check async for check in _runtimes(home)]]


async def _runtimes(home: Path) -> AsyncIterator[Check]:
    """One runtime is enough; none blocks."""
    from rock.cli._checks import Check, Verdict
    from rock.cli._sweep import REAL_RUNTIMES
    from rock.runtimes.select import make_runtime

    found = []
    for name in REAL_RUNTIMES:
        runtime = make_runtime(name, "doctor", home)
        try:
            found.append((name, await runtime.check()))
        finally:
            await runtime.close()
    lacking = Verdict.MISSING if any(seen.ok for _, seen in found) else Verdict.BLOCKS
    for name, seen in found:
        yield Check(name, Verdict.OK if seen.ok else lacking, seen.detail, seen.remedy)


async def _leaks(home: Path, fix: bool) -> tuple[list[Check], list[Item]]:
    """What is on the machine and nobody looks after, whether or not a platform runs; and everything with its owner."""
    from rock.cli._checks import Check, Verdict
    from rock.cli._owners import inventory, remove
    from rock.domain.errors import RockError

    if _server(home) is None and _state_is_locked(home):
        return [Check("leftovers", Verdict.OK, "the platform is starting")], []
    ask = asker(home)
    try:
        items = await inventory(home, ask)
        if fix and not all(item.owner for item in items):
            for failed in await remove(home, items):
                say(f"[yellow]{escape(failed)}[/]")
            items = await inventory(home, ask)
    except RockError as error:
        return [Check("leftovers", Verdict.MISSING, str(error))], []
    return list(_leftovers(home, items)) or [Check("leftovers", Verdict.OK, "none")], items


def _leftovers(home: Path, items: Sequence[Item]) -> Iterator[Check]:
    from rock.cli._checks import Check, Verdict
    from rock.cluster.settings import instance_of

    own = instance_of(home) if (home / "instance").exists() else ""
    lost = [item for item in items if not item.owner]
    kinds = (
        ("sandboxes without a platform", ("container", "sandbox")),
        ("processes of sandboxes that are gone", ("process",)),
        ("directories of sandboxes that are gone", ("directory",)),
        ("snapshots of leases that have ended", ("snapshot",)),
        ("volumes and networks without a platform", ("volume", "network")),
    )
    for what, which in kinds:
        for mine in (True, False):
            found = [item for item in lost if item.kind in which and (item.instance == own) is mine]
            if found:
                shown = ", ".join(f"{item.id} ({item.note})" if item.note else item.id for item in found[:_SHOWN])
                whose = "" if mine else " of other instances"
                more = ", …" if len(found) > _SHOWN else ""
                yield Check("leftovers", Verdict.MISSING, f"{len(found)} {what}{whose}: {shown}{more}", _REMEDY)


def _state_is_locked(home: Path) -> bool:
    from rock.cli import _state

    return _state.lock_is_held(home)


def _server(home: Path) -> ServerFile | None:
    from rock.cli import _state

    return _state.running_server(home)


def asker(home: Path) -> Ask:
    """What asks the platform of ``home``, if one runs."""
    from rock.cli._owners import Known, nobody
    from rock.sdk import Rock

    server = _server(home)
    if server is None:
        return nobody
    url = server.url

    async def ask() -> Known:
        async with Rock(url, timeout_s=10.0, retry_s=0) as rock:
            sandboxes, leases = await rock.sandboxes(), await rock.leases()
        return Known({view.id: view for view in sandboxes}, {view.id: view for view in leases})

    return ask
