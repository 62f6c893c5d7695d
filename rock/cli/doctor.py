"""``rock doctor``: what this machine lacks, and the command that mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rock.cli._output import JsonOption, console, escape, print_json, table

if TYPE_CHECKING:
    from rock.cli._checks import Check

_SHOWN = 5
STYLE = {"ok": "green", "missing": "yellow", "blocks": "bold red"}


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: Python, runtimes, disk, port, browser, packages, and sandboxes without an owner.

    Each line says what was found and, where something is missing, the exact command that mends it. The exit code is 1
    only if something keeps the platform from running; what is merely missing is left to you.

    Examples:
      rock doctor
      rock doctor --json
    """
    import asyncio
    from dataclasses import asdict

    from rock.sdk.home import rock_home

    checks = asyncio.run(_all(rock_home()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        made = table("check", "", "found", "to mend it")
        for check in checks:
            style = STYLE[check.verdict]
            made.add_row(check.name, f"[{style}]{check.verdict}[/]", escape(check.found), escape(check.remedy))
        console().print(made)
    if any(check.verdict == "blocks" for check in checks):
        raise typer.Exit(1)


async def _all(home: Path) -> list[Check]:
    from rock.cli._checks import local_checks

    return [*local_checks(home), *[check async for check in _runtimes(home)], *[check async for check in _leaks(home)]]


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


async def _leaks(home: Path) -> AsyncIterator[Check]:
    """What this home's instance has on the machine and nobody looks after, whether or not the platform runs."""
    from rock.cli import _state
    from rock.cli._checks import Check, Verdict
    from rock.cli._sweep import leaks
    from rock.domain.errors import RockError
    from rock.sdk import Rock

    server = _state.running_server(home)
    if server is None and _state.lock_is_held(home):
        yield Check("leftovers", Verdict.OK, "the platform is starting")
        return

    async def known() -> set[str]:
        if server is None:
            return set()
        async with Rock(server.url, timeout_s=5.0, retry_s=0) as rock:
            return {view.id for view in await rock.sandboxes()}

    try:
        found = await leaks(home, known)
    except RockError as error:
        yield Check("leftovers", Verdict.MISSING, str(error))
        return
    kinds = (
        ("sandboxes without a platform", found.sandboxes),
        ("processes of sandboxes that are gone", found.processes),
        ("directories of sandboxes that are gone", found.directories),
    )
    for what, items in kinds:
        if items:
            shown = ", ".join(items[:_SHOWN]) + (", …" if len(items) > _SHOWN else "")
            yield Check("leftovers", Verdict.MISSING, f"{len(items)} {what}: {shown}", "rock down")
    if not found:
        yield Check("leftovers", Verdict.OK, "none")
