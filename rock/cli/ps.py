"""``rock ps``: what runs, and what failed lately and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, age, console, escape, notes, print_json, state, table

if TYPE_CHECKING:
    from rich.table import Table

    from rock.sdk import Health, NodeView, QuarantineView, Rock, SandboxView

RECENT_FAILURES = 5


def ps(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that are gone.")] = False,
    only: Annotated[str, typer.Option("--state", help="Only sandboxes in this state.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only sandboxes of this training run.")] = "",
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

    health, nodes, views, failures, quarantined = ask(look)
    if as_json:
        print_json(views)
        return
    out = console()
    out.print(f"[bold]platform[/] {health.status}, runtime {health.runtime}, up {_up(health)}, pid {health.pid}")
    if health.detail:
        out.print(f"[yellow]{escape(health.detail)}[/]")
    for node in nodes:
        out.print(_node_line(node))
    for refused in quarantined:
        name = escape(f"{refused.name} ({refused.subject})")
        out.print(f"[yellow]in quarantine[/] {name}: `rock quarantine list` says why")
    out.print(sandbox_table(views) if views else "\nNo sandboxes. `rock sandbox create` makes one.")
    shown = {view.id for view in views}
    latest = [view for view in failures if view.id not in shown][:RECENT_FAILURES]
    if latest and not only:
        out.print(sandbox_table(latest, title="Latest failures (`rock sandbox inspect ID` shows the evidence)"))


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
