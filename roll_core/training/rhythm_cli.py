"""``rock run rhythm``: what the policy attended to, in the words of an episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from roll_core.training.replay_cli import find_run

CONSOLE = Console()


def rhythm(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR|last", help="Id or directory of a run.")],
    episode: Annotated[str, typer.Argument(help="Id of an episode; without it, the run's statistics.")] = "",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with the attention maps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Show the attention rhythm of an episode: WAAD and FAI of every token, preplan tokens and anchors.

    Without EPISODE: how preplan and anchors are coupled over all recorded episodes, and which those are. An episode
    that was not recorded is read again from the event log with the nearest checkpoint.

    Examples:
      rock run rhythm last
      rock run rhythm last ep-1f2e3d4c5b-12 --html rhythm.html
    """
    from roll_core.training.run import RunDirectory

    directory = RunDirectory(find_run(run))
    if episode:
        _episode(directory, episode, html, as_json=as_json)
    elif html is not None:
        raise typer.BadParameter("--html draws one episode: name it.")
    else:
        _run(directory.path, as_json=as_json)


def _episode(directory: object, episode: str, html: Path | None, *, as_json: bool) -> None:
    from roll_core.algorithms.rhythm import Coupling
    from roll_core.training.rhythm_source import find
    from roll_core.training.rhythm_view import coloured, sentences
    from roll_core.training.rhythm_view import html as page
    from roll_core.training.run import RunDirectory

    assert isinstance(directory, RunDirectory)
    found = find(directory, episode, maps=html is not None)
    if html is not None:
        html.write_text(page(found.record, found.maps, found.note), encoding="utf-8")
    if as_json:
        typer.echo(found.record.model_dump_json())
        return
    record = found.record
    result = {True: "won", False: "lost", None: ""}[record.success]
    CONSOLE.print(f"{record.episode_id}  step {record.step}  {result}  {record.task}", highlight=False, markup=False)
    CONSOLE.print(f"{found.note}; credit: {record.strategy}\n", style="dim", highlight=False, markup=False)
    for series, say in (
        ("waad", "WAAD, how far back local heads look"),
        ("fai", "FAI, how much later tokens look here"),
    ):
        CONSOLE.print(say, style="bold", highlight=False)
        CONSOLE.print(coloured(record, series), "")
    CONSOLE.print("brighter is higher; ^ preplan token, * anchor, underlined: more credit; dim: context", style="dim")
    for sentence in sentences(Coupling(**record.coupling.model_dump())):
        CONSOLE.print(sentence, highlight=False, markup=False)
    if html is not None:
        CONSOLE.print(f"written to {html}", highlight=False, soft_wrap=True)


def _run(directory: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from roll_core.errors import RecordError
    from roll_core.training.rhythm_record import total
    from roll_core.training.rhythm_source import records
    from roll_core.training.rhythm_view import sentences

    found = records(directory)
    if not found:
        raise RecordError(
            f"{directory} has no recorded rhythm: its recipe gave no credit by attention rhythm (algorithm.credit), or "
            "rhythm.record was 0. Name an episode, and it is read from the event log."
        )
    together = total([record.coupling for record in found])
    if as_json:
        gains = {"entropy_gain": together.entropy_gain, "following_gain": together.following_gain}
        episodes = [record.view().model_dump(mode="json") for record in found]
        typer.echo(json.dumps(asdict(together) | gains | {"episodes": episodes}))
        return
    for sentence in [f"{len(found)} recorded episodes", *sentences(together)]:
        CONSOLE.print(sentence, highlight=False, markup=False)
    table = Table("step", "episode", "task", "result", "tokens", "mean γ", box=None)
    for record in found:
        gamma = sum(record.gamma) / max(len(record.gamma), 1)
        result = {True: "won", False: "lost", None: ""}[record.success]
        table.add_row(str(record.step), record.episode_id, record.task, result, str(len(record.own)), f"{gamma:.2f}")
    CONSOLE.print(table)
