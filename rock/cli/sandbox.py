"""``rock sandbox``: create, list, use, look into and remove single sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli import _using
from rock.cli._evidence import print_view
from rock.cli._output import JsonOption, console, escape, print_json, say
from rock.cli.ps import ps

if TYPE_CHECKING:
    from rock.sdk import LeaseView, Limits, RestartView, Rock, SandboxSpec, SandboxStats, SandboxView

app = typer.Typer(no_args_is_help=True, help="Create, use, look into and remove single sandboxes.")
app.command("ls")(ps)


@app.command()
def create(
    image: Annotated[str, typer.Argument(help="Image to run; none for the platform's base image.")] = "",
    env: Annotated[str, typer.Option(help="Host this environment instead.")] = "",
    ttl_s: Annotated[float, typer.Option("--ttl", min=1, max=86_400, help="Seconds until it is removed.")] = 3600.0,
    wait_s: Annotated[float, typer.Option("--wait", min=0, max=3600, help="Seconds to wait for room.")] = 60.0,
    cpus: Annotated[float, typer.Option(min=0.01, max=256, help="Processors it may use.")] = 1.0,
    memory_mb: Annotated[int, typer.Option("--memory", min=16, help="Memory it may use, in MiB.")] = 512,
    environ: Annotated[list[str], typer.Option("--environ", "-e", metavar="NAME=VALUE", help="Set a variable.")] = [],  # noqa: B006 - typer copies it
    network: Annotated[str, typer.Option(help="none or bridge. Less safe than the default: bridge.")] = "none",
    egress: Annotated[
        list[str],
        typer.Option(metavar="HOST", help="Let it reach this host by HTTP(S): pypi.org, *.example.org, host:8443."),
    ] = [],  # noqa: B006 - typer copies it
    writable: Annotated[bool, typer.Option("--writable", help="A writable root. Less safe.")] = False,
    disk_mb: Annotated[int, typer.Option("--disk", min=1, help="Disk it may use with --writable, in MiB.")] = 4096,
    as_json: JsonOption = False,
) -> None:
    """Create a sandbox and print its id.

    It has no network, a read-only root with a small /tmp, no capabilities, and limits on memory, processes and
    processors, unless options loosen that; what is loosened shows in `rock ps`. With --egress it still has no network,
    but a proxy on its node that leads to the hosts given and to no others. It is removed after --ttl seconds, or by
    `rock sandbox rm`, or with the platform.

    Examples:
      rock sandbox create
      rock sandbox create python:3.12-slim --memory 1024 --ttl 600
      rock sandbox create --egress pypi.org --egress files.pythonhosted.org
      rock exec $(rock sandbox create) python3 -c 'print(6 * 7)'
    """
    from rock.cli._client import ask
    from rock.sdk import Limits
    from rock.sdk.requests import lease_request

    if env and image:
        raise typer.BadParameter("give an image or --env, not both", param_hint="--env")
    usual = (cpus, memory_mb, disk_mb, network) == (1.0, 512, 4096, "none")
    plain = usual and not environ and not egress and not writable
    if env and not plain:
        raise typer.BadParameter("an environment's env.toml says how its sandboxes are made", param_hint="--env")
    labels = {"by": "rock sandbox create"}
    limits = Limits(cpus=cpus, memory_bytes=memory_mb << 20, disk_bytes=disk_mb << 20)

    async def take(rock: Rock) -> LeaseView:
        if env:
            return await rock.create_lease(lease_request(env=env, ttl_s=ttl_s, wait_s=wait_s, labels=labels))
        spec = None if plain else _spec(image, limits, environ, network, egress, writable)
        return await rock.create_lease(lease_request(image, spec=spec, ttl_s=ttl_s, wait_s=wait_s, labels=labels))

    lease = ask(take)
    if as_json:
        print_json(lease.model_copy(update={"token": ""}))
    else:
        say(lease.sandbox_id)


def _spec(
    image: str, limits: Limits, environ: list[str], network: str, egress: list[str], writable: bool
) -> SandboxSpec:
    from pydantic import ValidationError

    from rock.sdk import SandboxSpec

    pairs = [item.partition("=") for item in environ]
    if bad := [item for item, pair in zip(environ, pairs, strict=True) if not pair[0] or not pair[1]]:
        raise typer.BadParameter(f"{bad[0]!r} is not NAME=VALUE", param_hint="--environ")
    try:
        return SandboxSpec.model_validate(
            {
                "image": image,
                "environ": {name: value for name, _, value in pairs},
                "limits": limits,
                "network": network,
                "egress": egress,
                "read_only": not writable,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise typer.BadParameter(
            first["msg"], param_hint=f"--{first['loc'][0] if first['loc'] else 'egress'}"
        ) from error


@app.command()
def rm(
    sandboxes: Annotated[list[str], typer.Argument(help="Ids of sandboxes.", metavar="SANDBOX...")],
) -> None:
    """Remove sandboxes, whoever holds them. An episode that runs in one is void, never scored.

    Examples:
      rock sandbox rm sb-0123456789
    """
    from rock.cli._client import ask
    from rock.sdk import NotFound

    async def remove(rock: Rock) -> list[str]:
        missing = []
        for sandbox_id in sandboxes:
            try:
                await rock.remove_sandbox(sandbox_id)
            except NotFound:
                missing.append(sandbox_id)
            else:
                say(f"removed {escape(sandbox_id)}")
        return missing

    if missing := ask(remove):
        raise NotFound(f"No such sandbox: {', '.join(missing)}.", hint="`rock ps` lists what there is.")


@app.command()
def restart(
    sandbox: Annotated[str, typer.Argument(help="Id of a sandbox.")],
    force: Annotated[bool, typer.Option("--force", help="Even if its lease is lost by that.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the events and whoever holds it.")] = "",
    wait_s: Annotated[float, typer.Option("--wait", min=0, max=60, help="Seconds to wait for its successor.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Replace a sandbox: it is ended, and whoever holds it goes on in another.

    An episode in it is replayed in the other sandbox and goes on, if its environment recovers; if not, nothing is done
    without --force. A sandbox that nobody holds is ended, and its pool starts another.

    Examples:
      rock sandbox restart sb-0123456789
      rock sandbox restart sb-0123456789 --force --reason "its disk is slow"
    """
    from rock.cli._client import ask

    view = ask(lambda rock: rock.restart_sandbox(sandbox, force=force, reason=reason, wait_s=wait_s))
    if as_json:
        print_json(view)
    else:
        say(f"{escape(view.sandbox_id)}: {_became(view)}")


def _became(view: RestartView) -> str:
    if view.outcome == "ended":
        return "ended; nobody held it, and its pool starts another"
    if view.outcome == "lost":
        return f"ended; lease {view.lease_id} is lost"
    if view.replacement:
        return f"lease {view.lease_id} goes on in {view.replacement}"
    return f"lease {view.lease_id} is still looking for another (`rock events` says when it has one)"


@app.command()
def inspect(
    sandbox: Annotated[str, typer.Argument(help="Id of a sandbox.")],
    as_json: JsonOption = False,
) -> None:
    """Show everything known of a sandbox: its state, its limits, and all the evidence if it failed.

    While it lives that includes what it takes: processor, memory, processes, disk. Of a failed one it is its cause, its
    exit code, whether memory ran out, its last output, how busy the machine was, and the node's last probes. Also as
    `rock inspect`.

    Examples:
      rock inspect sb-0123456789
      rock sandbox inspect sb-0123456789 --json
    """
    from rock.cli._client import ask
    from rock.sdk import NotFound, RuntimeUnavailable

    async def look(rock: Rock) -> tuple[SandboxView, SandboxStats | None]:
        view = await rock.sandbox_view(sandbox)
        try:
            return view, await rock.sandbox_stats(sandbox)
        except (NotFound, RuntimeUnavailable):  # it does not run, or ended meanwhile
            return view, None

    view, stats = ask(look)
    if as_json:
        print_json({**view.model_dump(mode="json"), "stats": stats})
    else:
        print_view(console(), view, stats)


_using.add_to(app)
