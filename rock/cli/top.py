"""``rock top``: the platform and its runs, live in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rock.cli._output import age, console, duration, escape, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Group
    from rich.table import Table

    from rock.sdk import EventView, Health, LedgerView, MetricPoint, NodeView, Rock, RunView

RUNS = 5
EVENTS = 8
WIDTH = 24
"""Columns of a bar, and points of a curve."""
BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = (("success", "rollout/success"), ("reward", "rollout/reward"), ("tokens/s", "rollout/tokens_per_s"))
AT_WORK = frozenset({"starting", "warm_start", "evaluating", "training"})


@dataclass(frozen=True, slots=True)
class Moment:
    """What one picture shows, read in one go."""

    health: Health
    nodes: Sequence[NodeView]
    runs: Sequence[RunView]
    ledgers: Mapping[str, LedgerView]
    metrics: Mapping[str, Sequence[MetricPoint]]
    """Of the last steps, by run."""
    events: Sequence[EventView]


def top(
    every_s: Annotated[float, typer.Option("--every", min=0.2, max=60, help="Seconds between two pictures.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
) -> None:
    """Watch the platform: nodes and their load, what the runs are doing, what happened last.

    Goes on until Ctrl-C. While the platform does not answer it keeps the last picture, says so, and asks again.

    Examples:
      rock top
      rock top --once
    """
    from rock.cli._client import ask

    if once:
        console().print(picture(ask(look)))
        return
    ask(lambda rock: _live(rock, every_s))


async def look(rock: Rock) -> Moment:
    import asyncio

    health, nodes, runs, events = await asyncio.gather(
        rock.health(), rock.nodes(), rock.runs(), rock.events(limit=EVENTS)
    )
    shown = sorted(runs, key=lambda r: (r.status in AT_WORK, r.created_at), reverse=True)[:RUNS]
    ledgers = await asyncio.gather(*(rock.ledger(r.id) for r in shown))
    metrics = await asyncio.gather(*(rock.metrics(r.id, since_step=max(0, r.step - WIDTH)) for r in shown))
    ids = [r.id for r in shown]
    by_run = dict(zip(ids, metrics, strict=True))
    return Moment(health, nodes, shown, dict(zip(ids, ledgers, strict=True)), by_run, events)


async def _live(rock: Rock, every_s: float) -> None:
    import asyncio

    from rich.console import Group
    from rich.live import Live

    from rock.sdk import DeadlineExceeded, PlatformUnavailable

    moment = await look(rock)
    with Live(picture(moment), console=console(), auto_refresh=False, screen=True) as live:
        while True:
            await asyncio.sleep(every_s)
            try:
                moment = await look(rock)
                live.update(picture(moment), refresh=True)
            except (PlatformUnavailable, DeadlineExceeded) as error:
                said = f"[bold red]The platform does not answer[/]; this is the last picture. {escape(str(error))}"
                live.update(Group(said, picture(moment)), refresh=True)


def picture(moment: Moment) -> Group:
    from rich.console import Group

    health = moment.health
    tone = "green" if health.status == "ok" else "yellow"
    parts: list[Any] = [
        f"[bold]ROCK & ROLL[/]  [{tone}]{health.status}[/]  {escape(health.runtime)}  up {duration(health.uptime_s)}"
        + (f"  [yellow]{escape(health.detail)}[/]" if health.detail else ""),
        _nodes(moment.nodes),
    ]
    parts.append(_runs(moment) if moment.runs else "\nNo run yet. `rock train RECIPE` starts one.\n")
    parts.append(_events(moment.events))
    return Group(*parts)


def _nodes(nodes: Sequence[NodeView]) -> Table:
    made = table("node", "standing", "CPU", "memory", "sandboxes", "leased", "ready", "starting", "claims", "failures")
    for node in nodes:
        counts = {state.value: count for state, count in node.sandboxes.items()}
        living = sum(count for name, count in counts.items() if name not in {"gone", "failed"})
        used = node.memory_used_bytes / node.memory_total_bytes if node.memory_total_bytes else 0.0
        standing = node.standing.value
        made.add_row(
            escape(node.name),
            f"[green]{standing}[/]" if standing == "up" and node.healthy else f"[bold yellow]{standing}[/]",
            f"{bar(node.cpu_percent / 100, 10)} {node.cpu_percent:3.0f}%",
            f"{bar(used, 10)} {used:4.0%}",
            f"{living} of {node.capacity}",
            str(counts.get("leased", 0) + counts.get("suspect", 0)),
            str(counts.get("ready", 0)),
            str(counts.get("starting", 0)),
            f"{node.claims:,}",
            f"{node.failures:,}",
        )
    return made


def _runs(moment: Moment) -> Table:
    made = table("run", "status", "step", "for", *(name for name, _ in CURVES), "ended", "void")
    for run in moment.runs:
        ledger = moment.ledgers[run.id]
        accounts = {state.value: count for state, count in ledger.accounts.items()}
        ended, void = ledger.dispatched - accounts.get("in_flight", 0), accounts.get("void", 0)
        style = "green" if run.status in {"completed", *AT_WORK} else "yellow"
        made.add_row(
            f"{escape(run.name)} [dim]{run.id}[/]",
            f"[{style}]{run.status.replace('_', ' ')}[/]",
            f"{bar(run.step / run.total_steps if run.total_steps else 0.0, 10)} {run.step}/{run.total_steps}",
            age(run.created_at),
            *(_curve(moment.metrics[run.id], name) for _, name in CURVES),
            f"{ended:,}",
            f"[yellow]{void:,}[/]" if void else "0",
        )
    return made


def _curve(points: Sequence[MetricPoint], name: str) -> str:
    values = [point.values[name] for point in points if name in point.values][-WIDTH:]
    return f"{spark(values)} {values[-1]:.3g}" if values else "[dim]none[/]"


def _events(events: Sequence[EventView]) -> Table:
    made = table("when", "event", "of", "detail")
    for event in events[:EVENTS]:
        bad = event.kind.endswith((".failed", ".down", ".lost", ".expired", ".diverged"))
        kind = f"[yellow]{event.kind}[/]" if bad else event.kind
        made.add_row(f"{event.at.astimezone():%H:%M:%S}", kind, escape(event.subject), escape(event.detail))
    return made


def bar(share: float, width: int) -> str:
    """A bar ``width`` columns wide; what is beyond its ends is cut."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return f"[blue]{'█' * filled}[/][dim]{'░' * (width - filled)}[/]"


def spark(values: Sequence[float]) -> str:
    """A curve one line high, from its lowest value to its highest."""
    low, high = min(values), max(values)
    if high <= low:
        return BLOCKS[0] * len(values)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in values)
