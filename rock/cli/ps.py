"""``rock ps``: what runs, and what failed lately and why."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rock.cli._output import JsonOption, age, console, escape, notes, print_json, state, table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from rock.sdk import Health, NodeView, QuarantineView, Rock, SandboxView

RECENT_FAILURES = 5
WATCH_AT_LEAST_EVERY_S = 2.0
WATCH_AT_MOST_EVERY_S = 0.2


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that are gone.")] = False,
    only: Annotated[str, typer.Option("--state", help="Only sandboxes in this state.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only sandboxes of this training run.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew whenever something happens.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the platform, its nodes and its sandboxes.

    Settings that are less safe than the default (network, writable root, root user) stand in yellow in the last
    column, the reason of a failure in red. Sandboxes that are gone are left out, but for the latest failures.

    Examples:
      rock ps
      rock ps --state failed
      rock ps --run run-1f2e3d4c5b --json
    """
    from rock.cli._client import ask
    from rock.sdk import InvalidRequest, SandboxState

    if only and only not in set(SandboxState):
        raise InvalidRequest(f"{only!r} is no state of a sandbox.", hint=f"States: {', '.join(SandboxState)}.")

    async def look(
        rock: Rock,
    ) -> tuple[Health, list[NodeView], list[SandboxView], list[SandboxView], list[QuarantineView]]:
        views = await rock.sandboxes(state=only or None, run_id=run or None)
        if every and not only:
            views += await rock.sandboxes(state=SandboxState.GONE, run_id=run or None)
        failures = await rock.sandboxes(state=SandboxState.FAILED, run_id=run or None)
        living = list({view.id: view for view in views}.values())
        return await rock.health(), await rock.nodes(), living, failures, await rock.quarantine()

    if watch and not as_json:
        ask(lambda rock: _watch(rock, look, latest=not only))
        return
    seen = ask(look)
    if as_json:
        print_json(seen[2])
        return
    console().print(_picture(seen, latest=not only))


Seen = tuple["Health", "list[NodeView]", "list[SandboxView]", "list[SandboxView]", "list[QuarantineView]"]


async def _watch(rock: Rock, look: Callable[[Rock], Awaitable[Seen]], *, latest: bool) -> None:
    """Anew with every event, but no more than once in a while, and from time to time without any."""
    import asyncio

    from rich.live import Live

    news = asyncio.Event()

    async def listen() -> None:
        async for _ in rock.follow():
            news.set()

    listening = asyncio.create_task(listen())
    try:
        with Live(_picture(await look(rock), latest=latest), console=console(), auto_refresh=False) as live:
            while not listening.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_AT_LEAST_EVERY_S):
                        await news.wait()
                news.clear()
                live.update(_picture(await look(rock), latest=latest), refresh=True)
                await asyncio.sleep(WATCH_AT_MOST_EVERY_S)
        await listening
    finally:
        listening.cancel()


def _picture(seen: Seen, *, latest: bool) -> Group:
    from rich.console import Group

    health, nodes, views, failures, quarantined = seen
    parts: list[Any] = [
        f"[bold]platform[/] {health.status}, runtime {health.runtime}, up {_up(health)}, pid {health.pid}"
    ]
    if health.detail:
        parts.append(f"[yellow]{escape(health.detail)}[/]")
    parts += [_node_line(node) for node in nodes]
    for refused in quarantined:
        name = escape(f"{refused.name} ({refused.subject})")
        parts.append(f"[yellow]in quarantine[/] {name}: `rock quarantine list` says why")
    parts.append(sandbox_table(views) if views else "\nNo sandboxes. `rock sandbox create` makes one.")
    shown = {view.id for view in views}
    others = [view for view in failures if view.id not in shown][:RECENT_FAILURES]
    if others and latest:
        parts.append(sandbox_table(others, title="Latest failures (`rock sandbox inspect ID` shows the evidence)"))
    return Group(*parts)


def sandbox_table(views: list[SandboxView], title: str = "") -> Table:
    made = table("sandbox", "state", "environment or image", "node", "run", "age", "notes", title=title)
    for view in views:
        what = view.spec.env or view.spec.image
        made.add_row(
            view.id,
            state(view.state.value),
            escape(what),
            escape(view.node),
            escape(view.run_id),
            age(view.created_at),
            notes(view),
        )
    return made


def _up(health: Health) -> str:
    from rock.cli._output import duration

    return duration(health.uptime_s)


def _node_line(node: NodeView) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in node.sandboxes.items() if count and name != "gone")
    pools = "; ".join(
        f"pool {pool.env or pool.image}: {pool.ready} ready of {pool.level or pool.target}"
        for pool in node.pools
        if pool.target or pool.level
    )
    health = "[green]healthy[/]" if node.healthy else f"[red]unhealthy[/] {escape(node.detail)}"
    line = f"[bold]node[/] {escape(node.name)} {health}, capacity {node.capacity}"
    return ", ".join(part for part in (line, counts, escape(pools)) if part)
