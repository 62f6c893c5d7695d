"""``rock run export``: the model of a run for everyone else."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

CONSOLE = Console()


class Precision(StrEnum):
    """Of the numbers in the files."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    run: Annotated[str, typer.Argument(metavar="RUN|DIR|last", help="Id or directory of a run.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write; it must not exist.")],
    step: Annotated[int | None, typer.Option(metavar="STEP", help="Checkpoint of this step, not the newest.")] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Precision of the weights: float32 is what was trained.")
    ] = Precision.float32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the trained model as a Hugging Face directory, which transformers and vLLM load.

    Adapters are merged, and a large model is cut into several files. Tokenizer, chat template and generation settings
    of a checkpoint that the run began with go along.

    Examples:
      rock run export last --out my-model
      rock run export run-1f2e3d4c5b --out my-model --step 100 --dtype bfloat16
    """
    import torch

    from roll_core.training.export import export as write
    from roll_core.training.replay_cli import find_run
    from roll_core.training.run import RunDirectory

    done = write(
        RunDirectory(find_run(run)), out.expanduser(), step=step, dtype=getattr(torch, dtype.value), overwrite=overwrite
    )
    if as_json:
        about = {"directory": str(done.directory), "run_id": done.run_id, "step": done.step}
        typer.echo(json.dumps({**about, "parameters": done.parameters, "files": list(done.files)}))
        return
    CONSOLE.print(
        f"[green]written[/] {done.directory}: step {done.step} of {done.run_id}, {done.parameters:,} parameters, "
        f"{', '.join(name for name in done.files if name.endswith('.safetensors'))}"
    )
