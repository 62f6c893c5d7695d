"""``rock run serve``: talk to the policy of a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from roll_core.serving.serve import Address
    from roll_core.training.export import Policy

CONSOLE = Console()
KEY = "ROCK_SERVE_KEY"


def serve(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR|last", help="Id or directory of a run.")],
    step: Annotated[int | None, typer.Option(metavar="STEP", help="Checkpoint of this step, not the newest.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind; other than loopback it needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.")] = 8000,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "policy",
) -> None:
    """Serve the policy of a run as an OpenAI-compatible endpoint.

    The key that clients must send is taken from the variable ROCK_SERVE_KEY. Ctrl-C ends it.

    Examples:
      rock run serve last
      ROCK_SERVE_KEY=$(openssl rand -hex 24) rock run serve last --host 0.0.0.0 --port 8000
    """
    from roll_core.serving.serve import Address
    from roll_core.training.export import load_policy
    from roll_core.training.replay_cli import find_run
    from roll_core.training.run import RunDirectory

    policy = load_policy(RunDirectory(find_run(run)), step)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(policy, Address(host, port, os.environ.get(KEY, "")), model))


async def _serve(policy: Policy, address: Address, model: str) -> None:
    from roll_core.serving.serve import serving_policy

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with serving_policy(policy, address, model) as url:
        key = f"key in {KEY}" if address.key else "no key"
        CONSOLE.print(
            f"[green]serving[/] {url}: {model!r} is step {policy.step} of {policy.recipe.name}, {key}",
            soft_wrap=True,
        )
        await ended.wait()
