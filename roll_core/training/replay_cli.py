"""``rock run replay``: the learner's side of a run once more, from its event log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rock.sdk.home import rock_home
from roll_core.errors import CheckpointError

CONSOLE = Console()


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR|last", help="Id or directory of a run.")],
    first: Annotated[
        int | None, typer.Option("--from", metavar="STEP", help="Begin with the checkpoint of this step.")
    ] = None,
    last: Annotated[int | None, typer.Option("--to", metavar="STEP", help="End with this step.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per step.")] = False,
) -> None:
    """Redo a run's learner steps from its event log, and compare the weights of each with those of the run.

    Needs no environment and no engine. On the CPU the weights are equal to the last bit; the exit code is 1, and the
    first step that differs is named, if they are not.

    Examples:
      rock run replay last
      rock run replay run-1f2e3d4c5b --from 100 --to 120
    """
    from roll_core.training.replay import Replayed
    from roll_core.training.replay import replay as steps_of
    from roll_core.training.run import RunDirectory

    differs: Replayed | None = None
    step: Replayed | None = None
    for step in steps_of(RunDirectory(find_run(run)), first=first, last=last):
        differs = differs or (None if step.same else step)
        _print(step, as_json=as_json)
    if as_json or step is None:
        pass
    elif differs is None:
        CONSOLE.print(f"[green]equal[/]: every replayed step has the weights of the run, {step.weights} in the end")
    else:
        CONSOLE.print(f"[bold red]differs[/] first at step {differs.step}: {differs.weights}, not {differs.logged}")
    if differs is not None:
        raise typer.Exit(1)


def _print(step: object, *, as_json: bool) -> None:
    from roll_core.training.replay import Replayed

    assert isinstance(step, Replayed)
    if as_json:
        typer.echo(json.dumps({"step": step.step, "logged": step.logged, "weights": step.weights, "same": step.same}))
        return
    verdict = "[green]same[/]" if step.same else f"[bold red]logged {step.logged}[/]"
    CONSOLE.print(f"step {step.step:>6}  {step.weights}  {verdict}", highlight=False)


def find_run(run: str) -> Path:
    """The run's directory: named itself, or by the run's id, or the last one under ``$ROCK_HOME/runs``."""
    path = Path(run).expanduser()
    if (path / "run.json").is_file():
        return path.absolute()
    known = sorted((rock_home() / "runs").glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    found = [p for p in known if run in ("last", json.loads(p.read_text(encoding="utf-8"))["run_id"])]
    if not found:
        raise CheckpointError(f"{run!r} is neither a run's directory nor the id of one under {rock_home() / 'runs'}.")
    return found[-1].parent
