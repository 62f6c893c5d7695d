"""``rock sandbox swerex``: a sandbox for agents that speak to a SWE-ReX runtime."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import say

if TYPE_CHECKING:
    from rock.sdk import Rock


def swerex(
    image: Annotated[str, typer.Argument(help="Image to run; none for the platform's base image.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine's loopback; 0: any.")] = 8000,
    token: Annotated[str, typer.Option("--auth-token", envvar="ROCK_SWEREX_TOKEN", help="Default: a new one.")] = "",
    writable: Annotated[bool, typer.Option("--writable", help="A writable root. Less safe.")] = False,
) -> None:
    """Serve a new sandbox as a SWE-ReX runtime until Ctrl-C: its client RemoteRuntime, and agents, use it unchanged.

    Prints the address and the token. Commands whose time is up are killed and the session stays usable; interactive
    programs in sessions are refused. Uploads need the extra `swerex`.

    Examples:
      rock sandbox swerex --port 8000 --auth-token secret
      rock sandbox swerex my-repository:1 --writable
    """
    import uvicorn

    from rock.cli._client import ask
    from rock.compat.swerex import create_app
    from rock.sdk import SandboxSpec

    key = token or secrets.token_urlsafe(24)
    spec = SandboxSpec(image=image, read_only=False) if writable else None

    async def serve(rock: Rock) -> None:
        async with rock.sandbox(image, spec=spec, labels={"by": "rock sandbox swerex"}) as box:
            config = uvicorn.Config(create_app(box, key), host="127.0.0.1", port=port, log_level="warning")
            server = uvicorn.Server(config)
            config.load()
            sockets = [config.bind_socket()]
            say(f"http://127.0.0.1:{sockets[0].getsockname()[1]} token {key} sandbox {box.id}")
            await server.serve(sockets)

    ask(serve)
