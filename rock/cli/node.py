"""``rock node``: the machines of the platform, and taking one out of service."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, console, escape, print_json, say, table

if TYPE_CHECKING:
    from rock.sdk import NodeView

app = typer.Typer(no_args_is_help=True, help="Show the nodes; cordon, drain and uncordon them.")

STYLE = {
    "up": "green",
    "suspect": "yellow",
    "dead": "bold red",
    "ejected": "yellow",
    "cordoned": "cyan",
    "draining": "cyan",
}
_LOOK_EVERY_S = 1.0

NodeArgument = Annotated[str, typer.Argument(help="The node's name, as `rock node list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="For those who wonder later.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the nodes: how they stand and why, what they hold, how busy they are.

    up takes leases; suspect missed a heartbeat; dead was silent so long that its leases were moved; ejected is much
    slower than its peers and rests for a while; cordoned and draining are an operator's word.

    Examples:
      rock node list
      rock node list --json
    """
    from rock.cli._client import ask

    nodes = ask(lambda rock: rock.nodes())
    if as_json:
        print_json(nodes)
        return
    made = table("node", "standing", "leased", "ready", "starting", "at most", "cpu", "memory", "address", "")
    for node in nodes:
        made.add_row(*_row(node))
    console().print(made)


def _row(node: NodeView) -> tuple[str, ...]:
    held = node.sandboxes.get("leased", 0) + node.sandboxes.get("suspect", 0)  # type: ignore[call-overload]
    memory = f"{node.memory_used_bytes / node.memory_total_bytes:.0%}" if node.memory_total_bytes else ""
    standing = node.standing.value
    return (
        escape(node.name),
        f"[{STYLE.get(standing, '')}]{standing}[/]" if standing in STYLE else standing,
        str(held),
        str(node.sandboxes.get("ready", 0)),  # type: ignore[call-overload]
        str(node.sandboxes.get("starting", 0)),  # type: ignore[call-overload]
        str(node.capacity),
        f"{node.cpu_percent:.0f} %",
        memory,
        escape(node.address),
        escape(node.standing_detail or node.detail),
    )


@app.command()
def cordon(name: NodeArgument, reason: ReasonOption = "", as_json: JsonOption = False) -> None:
    """Give a node no new leases. Those it has go on; a restart of the platform changes nothing.

    Examples:
      rock node cordon node-2 --reason "its disk is failing"
    """
    from rock.cli._client import ask

    _said(ask(lambda rock: rock.cordon(name, reason)), as_json, "takes no new leases")


@app.command()
def uncordon(name: NodeArgument, as_json: JsonOption = False) -> None:
    """Let a cordoned or drained node take leases again.

    Examples:
      rock node uncordon node-2
    """
    from rock.cli._client import ask

    _said(ask(lambda rock: rock.uncordon(name)), as_json, "takes leases again")


@app.command()
def drain(
    name: NodeArgument,
    reason: ReasonOption = "",
    wait: Annotated[bool, typer.Option(help="Wait until it is empty.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most; 0: for ever.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Empty a node: no new leases, no warm pools; leases that recover move to other nodes at once, others may end.

    Episodes of environments that recover go on elsewhere, replayed, without noticing more than a pause. When this
    returns, the node holds no lease and its machine may go. `rock node uncordon` takes it back into service.

    Examples:
      rock node drain node-2 --reason "kernel update"
      rock node drain node-2 --no-wait
    """
    from rock.cli._client import ask
    from rock.sdk import DeadlineExceeded

    node = ask(lambda rock: rock.drain(name, reason))
    deadline = time.monotonic() + timeout_s
    while wait and not node.standing_detail.startswith("empty"):
        if timeout_s and time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"node {name} is not empty after {timeout_s:g} s", hint="It goes on draining; `rock ps` shows by whom."
            )
        time.sleep(_LOOK_EVERY_S)
        node = next(one for one in ask(lambda rock: rock.nodes()) if one.name == name)
        if node.standing != "draining":
            break  # it died, or somebody took it back
    _said(node, as_json, "is empty" if node.standing_detail.startswith("empty") else f"is {node.standing.value}")


def _said(node: NodeView, as_json: bool, what: str) -> None:
    if as_json:
        print_json(node)
    else:
        say(f"Node [bold]{escape(node.name)}[/] {what}.")
