"""``rock env``: list, build, check and look into environments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rock.cli._output import JsonOption, console, escape, print_json, say, table

if TYPE_CHECKING:
    from rock.sdk import EnvView

app = typer.Typer(no_args_is_help=True, help="List, build, check and look into environments.")

# Of one step of a known solution, which may run programs.
STEP_S = 300.0

NameArgument = Annotated[str, typer.Argument(help="Name of the environment.")]
RuntimeOption = Annotated[
    str, typer.Option(help="auto, docker or bubblewrap: what will run it; only docker needs an image.")
]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the environments that are installed, built or not, with their splits.

    Packages offer environments through the entry-point group rock.envs; ROCK_ENV_PATH adds directories.

    Examples:
      rock env list
      ROCK_ENV_PATH=./my-envs rock env list
    """
    views = _views()
    if as_json:
        print_json(views)
        return
    made = table("environment", "version", "built", "tasks", "recovery", "description", "notes")
    for view in views:
        tasks = ", ".join(f"{split} {count}" for split, count in view.splits.items())
        loosened = f"[yellow]{escape(', '.join(view.loosened))}[/] " if view.loosened else ""
        built = "[green]yes[/]" if view.built else "[yellow]no[/]"
        made.add_row(
            escape(view.name),
            escape(view.version),
            built,
            escape(tasks),
            view.recovery,
            escape(view.description),
            loosened + escape(view.build_detail),
        )
    console().print(made if views else "No environments are installed.")


def _views() -> list[EnvView]:
    """As the disk has them: the same with and without a platform."""
    from rock.runtimes.bundles import EnvCatalog
    from rock.sdk.home import rock_home

    catalog = EnvCatalog(rock_home())
    return [catalog.view(name) for name in catalog.names()]


@app.command()
def tasks(
    name: NameArgument,
    split: Annotated[str, typer.Option(help="Only this split.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Print the ids of an environment's tasks, one a line.

    Examples:
      rock env tasks alfworld --split train | head
    """
    from rock.runtimes.bundles import EnvCatalog
    from rock.sdk.home import rock_home

    found = EnvCatalog(rock_home()).tasks(name, split)
    if as_json:
        print_json(found)
    else:
        sys.stdout.writelines(f"{task}\n" for task in found)


@app.command()
def build(
    name: NameArgument,
    runtime: RuntimeOption = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few tasks: enough to try it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is up to date.")] = False,
) -> None:
    """Build an environment: its files, its requirements, its data and, for Docker, its image.

    What is up to date is not built again. Nothing half done is left if it fails or is interrupted.

    Examples:
      rock env build alfworld
      rock env build alfworld --quick --runtime bubblewrap
    """
    say(_build(name, runtime, quick=quick, force=force))


def _build(name: str, runtime: str, *, quick: bool, force: bool) -> str:
    """Build it, its progress on standard error; returns what to say of the result."""
    from rock.runtimes.building import build_environment
    from rock.runtimes.bundles import EnvCatalog
    from rock.sdk.home import rock_home

    out = console(stderr=True)
    bundle = build_environment(
        EnvCatalog(rock_home()),
        name,
        quick=quick,
        force=force,
        image=_needs_image(runtime),
        on_line=lambda line: out.print(f"[dim]{escape(line)}[/]"),
    )
    splits = ", ".join(f"{split} {len(tasks)}" for split, tasks in bundle.tasks().items())
    return f"[bold]{escape(name)}[/] is built ({bundle.digest}; tasks: {splits or 'none'})."


def _needs_image(runtime: str) -> bool:
    """Docker needs one; ``auto`` means what the platform would choose."""
    if runtime not in {"auto", "docker", "bubblewrap"}:
        raise typer.BadParameter(f"{runtime!r} is none of auto, docker, bubblewrap", param_hint="--runtime")
    if runtime != "auto":
        return runtime == "docker"
    from rock.runtimes.docker_daemon import check_docker

    return check_docker().ok


@app.command()
def prefetch(
    name: NameArgument,
    instances: Annotated[
        str, typer.Option(metavar="all|N|NAMES", help="The tasks whose images are wanted; N: the first so many.")
    ] = "all",
    split: Annotated[str, typer.Option(help="Only tasks of this split.")] = "",
    jobs: Annotated[int, typer.Option(min=1, max=16, help="Images at a time; two at most are downloaded at once.")] = 2,
) -> None:
    """Fetch and make the images of tasks that are played in one of their own, before sandboxes need them.

    What is here already is left as it is. The environment's judge wants its own: prefetch that as well. The exit code
    is 1 if one could not be made; the others are.

    Examples:
      rock env prefetch swebench --instances 20
      rock env prefetch swebench-judge --split test
    """
    from rock.cli._prefetching import prefetch_images

    out = console(stderr=True)
    made = prefetch_images(name, instances, split, jobs, lambda line: out.print(f"[dim]{escape(line)}[/]"))
    say(f"{made.made} made, {made.here} here already, {len(made.failed)} failed.")
    for task, error in made.failed.items():
        say(f"[bold red]{escape(task)}[/]: {escape(error)}")
    if made.failed:
        raise typer.Exit(1)


@app.command()
def check(
    name: NameArgument,
    task: Annotated[str, typer.Option(help="Task to play; default: the first of the first split.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the episode.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps to play at most.")] = 10,
    action: Annotated[
        list[str], typer.Option("--action", help="Actions to play in turn; default: those it offers.")
    ] = [],  # noqa: B006 - typer copies it
    quick: Annotated[bool, typer.Option("--quick", help="Build with few tasks if it must be built.")] = False,
    instances: Annotated[
        str,
        typer.Option(metavar="all|N|NAMES", help="Play the known solutions of these tasks, and say what came of them."),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="With --instances: episodes at a time.")] = 4,
    repeat: Annotated[
        int, typer.Option(min=1, max=100, help="With --instances: times each; who differs is flaky.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Play an environment twice and see whether it keeps its word.

    Builds it if needed, leases a sandbox, resets and steps, and does so again in another sandbox: the same task with
    the same seed and actions must give the same episode. Uses the platform that runs, or starts one for the check and
    stops it. The exit code is 1 if a check failed.

    Examples:
      rock env check alfworld
      rock env check my-env --task level-3 --action left --action right --steps 50
      rock env check swebench --instances all --repeat 2
    """
    if instances:
        _check_instances(name, instances, jobs, repeat, as_json)
        return
    from rock.cli._checking import check_environment

    rows = check_environment(name, task, seed, steps, action, lambda: _build(name, "auto", quick=quick, force=False))
    if as_json:
        print_json([row.plain() for row in rows])
    else:
        made = table("check", "", "seconds", "found", title=f"environment {name}")
        for row in rows:
            verdict = "[green]ok[/]" if row.ok else "[bold red]failed[/]"
            made.add_row(row.name, verdict, f"{row.seconds:.3f}", escape(row.found))
        console().print(made)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


def _check_instances(name: str, instances: str, jobs: int, repeat: int, as_json: bool) -> None:
    """One row a task; the exit code is 1 unless every known solution was found to be one, each time."""
    from rock.cli._verdicts import Played, check_instances

    out = console(stderr=True)

    def on_played(one: Played) -> None:
        out.print(f"[dim]{escape(one.task)}: {one.verdict}[/]")

    played = check_instances(name, instances, jobs, repeat, STEP_S, on_played)
    if as_json:
        print_json([one.plain() for one in played])
    else:
        made = table("task", "", "times", "seconds", "found", title=f"environment {name}: its known solutions")
        for one in played:
            verdict = f"[green]{one.verdict}[/]" if one.ok else f"[bold red]{one.verdict}[/]"
            made.add_row(
                escape(one.task), verdict, f"{one.solved}/{one.times}", f"{one.seconds:.1f}", escape(one.found)
            )
        console().print(made)
        say(f"{sum(one.ok for one in played)} of {len(played)} solved.")
    if not all(one.ok for one in played):
        raise typer.Exit(1)
