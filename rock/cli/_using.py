"""``rock sandbox`` on a running sandbox: attach, cp, forward, pause, resume, fork, stats. On its node's machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rock.cli._output import JsonOption, console, escape, print_json, say, size, table
from rock.cli._swerex import swerex

if TYPE_CHECKING:
    from rock.sdk import Rock, Sandbox

T = TypeVar("T")
Id = Annotated[str, typer.Argument(help="Id of a leased sandbox.", metavar="SANDBOX")]


def add_to(app: typer.Typer) -> None:
    app.command(context_settings={"allow_interspersed_args": False})(attach)
    for command in (cp, forward, pause, resume, fork, stats, swerex):
        app.command()(command)


def _with(sandbox: str, work: Callable[[Sandbox], Awaitable[T]]) -> T:
    from rock.cli._client import ask

    async def main(rock: Rock) -> T:
        from rock.sdk.borrowing import borrow

        async with await borrow(rock, sandbox) as box:
            return await work(box)

    return ask(main)


def attach(
    sandbox: Id,
    argv: Annotated[
        list[str] | None, typer.Argument(help="A program; none for a shell.", metavar="[COMMAND]...")
    ] = None,
) -> None:
    """Open a terminal in a sandbox: a shell, or the program given. Ends with it, and with its exit code.

    Every key goes to the sandbox, Ctrl-C too; leave with exit or Ctrl-D. Its lease goes on as it was. What an episode's
    environment has in its sandbox can be seen, and spoilt.

    Examples:
      rock sandbox attach $(rock sandbox create)
      rock sandbox attach sb-0123456789 python3
    """
    from rock.cli._attaching import attach as on_this_terminal

    raise typer.Exit(_with(sandbox, lambda box: on_this_terminal(box, argv or [])))


def cp(
    source: Annotated[str, typer.Argument(help="A path here, or SANDBOX:PATH.")],
    target: Annotated[str, typer.Argument(help="A path here, or SANDBOX:PATH.")],
) -> None:
    """Copy a file, or a directory with everything in it, into or out of a sandbox.

    Out of one, links and special files in a directory are left out: they could point anywhere on this machine.

    Examples:
      rock sandbox cp ./project sb-0123456789:/tmp/project
      rock sandbox cp sb-0123456789:/tmp/result.json .
    """
    from_box, _, from_path = source.rpartition(":")
    to_box, _, to_path = target.rpartition(":")
    if bool(from_box) == bool(to_box):
        raise typer.BadParameter("exactly one of both must be SANDBOX:PATH", param_hint="SOURCE TARGET")
    if to_box:
        _with(to_box, lambda box: box.upload(from_path, to_path))
        return
    local = Path(to_path)
    _with(from_box, lambda box: box.download(from_path, local / Path(from_path).name if local.is_dir() else local))


def forward(
    sandbox: Id,
    port: Annotated[int, typer.Argument(min=1, max=65535, help="Port in the sandbox.")],
    local_port: Annotated[int, typer.Option("--local", min=0, max=65535, help="Port here; 0: any free one.")] = 0,
) -> None:
    """Make a port of a sandbox's loopback a port of this machine's, until Ctrl-C. The sandbox needs no network.

    Examples:
      rock sandbox forward sb-0123456789 8000
      rock sandbox forward sb-0123456789 8000 --local 9000
    """

    async def work(box: Sandbox) -> None:
        async with box.forward(port, local_port=local_port) as made:
            say(f"127.0.0.1:{made.local_port} → {escape(sandbox)}:{port}")
            await asyncio.Event().wait()

    try:
        _with(sandbox, work)
    except OSError as error:
        raise typer.BadParameter(
            f"port {local_port} cannot be listened on: {error.strerror}", param_hint="--local"
        ) from error


def pause(sandbox: Id) -> None:
    """Stop every process in a sandbox: it takes no processor time, keeps its memory and its lease.

    Examples:
      rock sandbox pause sb-0123456789
    """
    count = _with(sandbox, lambda box: box.pause())
    say(f"paused {escape(sandbox)}: {count} process{'es' if count != 1 else ''} stopped")


def resume(sandbox: Id) -> None:
    """Let a paused sandbox go on where it stood.

    Examples:
      rock sandbox resume sb-0123456789
    """
    _with(sandbox, lambda box: box.resume())
    say(f"resumed {escape(sandbox)}")


def fork(
    sandbox: Id,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=64, help="How many copies.")] = 1,
    ttl_s: Annotated[float, typer.Option("--ttl", min=1, max=86_400, help="Seconds until they are removed.")] = 3600.0,
) -> None:
    """Make copies of a sandbox's files in new sandboxes, and print their ids. Processes are not copied.

    That is what lies in /tmp; with a writable root under Docker the whole root.

    Examples:
      rock sandbox fork sb-0123456789 -n 4
    """
    from rock.cli._client import ask

    async def main(rock: Rock) -> list[str]:
        from rock.sdk.borrowing import borrow

        async with await borrow(rock, sandbox, copy_ttl_s=ttl_s) as box:
            return [copy.id for copy in await box.fork(count)]  # their leases end by their time

    for made in ask(main):
        say(made)


def stats(sandbox: Id, as_json: JsonOption = False) -> None:
    """Show what a sandbox takes at this moment: processes, processor time, memory, disks.

    Examples:
      rock sandbox stats sb-0123456789
    """
    usage = _with(sandbox, lambda box: box.usage())
    if as_json:
        from dataclasses import asdict

        print_json(asdict(usage))
        return
    made = table("what", "now")
    made.add_row("processes", f"{usage.processes}{' (paused)' if usage.paused else ''}")
    made.add_row("processor time", f"{usage.cpu_s:g} s")
    made.add_row("memory", size(usage.rss_bytes))
    for path, disk in usage.disks.items():
        made.add_row(path, f"{size(disk.used_bytes)} of {size(disk.total_bytes)}")
    console().print(made)
