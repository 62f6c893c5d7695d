"""``rock image``: the images sandboxes start from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from rock.cli._output import JsonOption, age, console, escape, print_json, say, size, table

app = typer.Typer(no_args_is_help=True, help="Build and list the images sandboxes start from.")


@app.command()
def build(
    directory: Annotated[
        Path | None, typer.Argument(help="Directory with a Dockerfile; none for the base image.")
    ] = None,
    tag: Annotated[str, typer.Option("--tag", "-t", help="Name of the image; default: the directory's.")] = "",
) -> None:
    """Build an image, or the base image that plain sandboxes and environments start from.

    The base image is one that is there already, else python:X.Y-slim from a registry, else it is made of the Python
    that runs this command (a few seconds, no network); one so made by another version is made again. A Dockerfile that
    says [bold]ARG BASE[/] is given it.

    Examples:
      rock image build
      rock image build ./my-tools --tag my-tools:1
    """
    from rock.domain.errors import InvalidRequest
    from rock.runtimes.images import build_image, ensure_base_image

    out = console(stderr=True)

    def on_line(line: str) -> None:
        out.print(f"[dim]{escape(line)}[/]")

    if directory is None:
        if tag:
            raise typer.BadParameter("is for a directory's image; the base image has a fixed name", param_hint="--tag")
        say(ensure_base_image(on_line=on_line))
        return
    if not directory.is_dir():
        raise InvalidRequest(f"{directory} is no directory.", hint="Give the directory that holds the Dockerfile.")
    say(build_image(tag or f"{directory.resolve().name.lower()}:latest", directory, on_line=on_line))


@app.command("ls")
def list_(as_json: JsonOption = False) -> None:
    """List the base images, the environments' images, and those built with `rock image build`.

    Examples:
      rock image ls
      rock image ls --json
    """
    from dataclasses import asdict

    from rock.runtimes.images import list_images

    images = list_images()
    if as_json:
        print_json([asdict(image) for image in images])
        return
    made = table("image", "id", "size", "age")
    for image in images:
        made.add_row(
            escape(image.tag),
            image.id.removeprefix("sha256:")[:12],
            size(image.size_bytes),
            age(datetime.fromtimestamp(image.created_at_s, UTC)),
        )
    console().print(made if images else "No images yet. `rock image build` makes the base image.")


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the images of environments' earlier builds that no sandbox uses, and say how much room that gives.

    The current build of each environment of this state directory stays. Another state directory that still stands on an
    older one makes its image again with `rock env build`.

    Examples:
      rock image prune --dry-run
      rock image prune
    """
    from dataclasses import asdict

    from rock.runtimes.bundles import EnvCatalog
    from rock.runtimes.pruning import old_images, remove_images
    from rock.sdk.home import rock_home

    catalog = EnvCatalog(rock_home())
    built = [catalog.built(name) for name in catalog.names()]
    images = old_images({bundle.image for bundle in built if bundle is not None})
    if not dry_run:
        images = remove_images(images)
    if as_json:
        print_json([asdict(image) for image in images])
        return
    for image in images:
        say(f"{image.tag}  {size(image.own_bytes)}")
    verb = "would go" if dry_run else "removed"
    say(f"{len(images)} image{'s' if len(images) != 1 else ''} {verb}, {size(sum(i.own_bytes for i in images))}")
