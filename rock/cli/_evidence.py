"""All that is known of one sandbox, for people: what it is, how it fares, and why it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rock.cli._output import age, escape, notes, size, state, table

if TYPE_CHECKING:
    from rich.console import Console

    from rock.wire.models import Evidence, Pressure, SandboxStats, SandboxView


def print_view(out: Console, view: SandboxView, stats: SandboxStats | None = None) -> None:
    """``stats``: what it takes, if it lives."""
    limits = view.spec.limits
    out.print(f"[bold]{view.id}[/]")
    _rows(
        out,
        {
            "state": f"{state(view.state.value)}  {escape(view.meaning)}",
            "node": f"{escape(view.node)} ({view.runtime})",
            "image": escape(view.spec.image),
            "environment": escape(view.spec.env),
            "lease": escape(view.lease_id),
            "run": escape(view.run_id),
            "created": f"{view.created_at:%Y-%m-%d %H:%M:%S} UTC, {age(view.created_at)} ago",
            "started in": f"{view.start_s:.2f} s" if view.start_s is not None else "",
            "handle": escape(view.handle),
            "limits": f"{limits.cpus:g} cpus, {size(limits.memory_bytes)}, {limits.pids} processes, "
            f"/tmp {size(limits.tmpfs_bytes)}" + ("" if view.spec.read_only else f", disk {size(limits.disk_bytes)}"),
            "takes": _stats(stats) if stats is not None else "",
            "network": view.spec.network,
            "egress": escape(", ".join(view.spec.egress)),
            "out of memory": _times(view.oom_kills, "a process in it was killed"),
            "environment died": _times(view.env_deaths, "its guest dealt with it"),
            "slow": escape(view.slow),
            "notes": notes(view) if view.evidence is None else "",
        },
    )
    if view.evidence is not None:
        _print_evidence(out, view.evidence)


def _print_evidence(out: Console, evidence: Evidence) -> None:
    out.print("[bold]why it failed[/]")
    detected = evidence.detected_after_s
    _rows(
        out,
        {
            "cause": f"[bold red]{escape(evidence.cause)}[/]",
            "detail": escape(evidence.detail),
            "exit code": f"{evidence.exit_code}" if evidence.exit_code is not None else "",
            "out of memory": "[red]yes: the kernel killed something in it[/]" if evidence.oom_killed else "no",
            "detected": f"{detected:.2f} s after its last sign of life" if detected is not None else "",
            "machine": _pressure(evidence.pressure) if evidence.pressure is not None else "",
        },
    )
    if evidence.probes:
        found = table("probe at (UTC)", "answer", "after", "", title="  last probes")
        for probe in evidence.probes:
            answer = "[green]ok[/]" if probe.ok else "[red]none[/]"
            found.add_row(
                f"{probe.at:%H:%M:%S.%f}"[:-3], answer, f"{probe.latency_s * 1000:.1f} ms", escape(probe.detail)
            )
        out.print(found)
    out.print("  last output" if evidence.last_output else "  it said nothing")
    for line in evidence.last_output:
        out.print(f"    {escape(line)}")


def _rows(out: Console, rows: dict[str, str]) -> None:
    for name, value in rows.items():
        if value:
            out.print(f"  {name:<16} {value}")


def _stats(stats: SandboxStats) -> str:
    disk = f", {size(stats.disk_bytes)} on the disk" if stats.disk_bytes is not None else ""
    out = f", {size(stats.egress_bytes)} through its proxy" if stats.egress_bytes else ""
    refused = f", [yellow]{stats.egress_refused} requests refused[/]" if stats.egress_refused else ""
    return (
        f"{stats.cpu_share:.2f} cpus of late ({stats.cpu_s:.1f} s in all), "
        f"{size(stats.memory_bytes)} of {size(stats.memory_limit_bytes)}, {stats.pids} processes{disk}{out}{refused}"
    )


def _times(count: int, what: str) -> str:
    return f"[yellow]{count} {'time' if count == 1 else 'times'}: {what}[/]" if count else ""


def _pressure(pressure: Pressure) -> str:
    return (
        f"cpu {pressure.cpu:.0%}, load {pressure.load_per_cpu:.1f} per cpu, memory {pressure.memory:.0%}, "
        f"disk {pressure.disk:.0%}"
    )
