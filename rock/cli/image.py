"""``rock image``: the images sandboxes start from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from rock.cli._output import JsonOption, age, console, escape, print_json, say, size, table

app = typer.Typer(no_args_is_help=True, help="Build, fetch, list and remove the images sandboxes start from.")


@app.command()
def build(
    directory: Annotated[
        Path | None, typer.Argument(help="Directory with a Dockerfile; none for the base image.")
    ] = None,
    tag: Annotated[str, typer.Option("--tag", "-t", help="Name; default: directory:digest.")] = "",
) -> None:
    """Build an image, or the base image that plain sandboxes and environments start from.

    The base image is one that is there already, else python:X.Y-slim from a registry, else it is made of the Python
    that runs this command (a few seconds, no network); one so made by another version is made again. A Dockerfile that
    says [bold]ARG BASE[/] is given it.

    Without --tag the name holds a digest of the directory's content and the base image: it never changes its meaning,
    and what is there already is not built again.

    Examples:
      rock image build
      rock image build ./my-tools --tag my-tools:1
    """
    from rock.domain.errors import InvalidRequest
    from rock.runtimes.image_store import content_tag
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
    if not tag:
        tag, known = content_tag(directory, on_line)
        if known:
            say(tag)
            return
    say(build_image(tag, directory, on_line=on_line))


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
def rm(
    images: Annotated[list[str], typer.Argument(help="Names of images.", metavar="IMAGE...")],
) -> None:
    """Remove images. One that a sandbox stands on is refused.

    Examples:
      rock image rm my-tools:0123456789ab
    """
    from rock.runtimes.image_store import remove

    for tag in images:
        remove(tag)
        say(f"removed {escape(tag)}")


@app.command()
def prefetch(
    images: Annotated[list[str], typer.Argument(help="Names of images, as in a registry.", metavar="IMAGE...")],
) -> None:
    """Fetch images from their registry before sandboxes need them. What is here already is left as it is.

    Examples:
      rock image prefetch python:3.12-slim
    """
    from rock.runtimes.image_store import prefetch as fetch

    out = console(stderr=True)
    for tag in images:
        fetched = fetch(tag, lambda line: out.print(f"[dim]{escape(line)}[/]"))
        say(f"{escape(tag)} {'fetched' if fetched else 'is here already'}")


@app.command()
def prune(
    limit_gb: Annotated[
        float | None, typer.Option("--limit", min=0, help="GB that all may take; the longest unused go.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the images of environments' earlier builds that no sandbox uses, and say how much room that gives.

    The current build of each environment of this state directory stays. Another state directory that still stands on an
    older one makes its image again with `rock env build`.

    With --limit those go, current ones too, that no sandbox was started from for longest, until all of ours take no
    more than that; what a sandbox stands on stays.

    Examples:
      rock image prune --dry-run
      rock image prune --limit 20
    """
    from dataclasses import asdict

    from rock.runtimes.bundles import EnvCatalog
    from rock.runtimes.image_store import StoredImage, evict
    from rock.runtimes.pruning import OldImage, old_images, remove_images
    from rock.sdk.home import rock_home

    images: list[OldImage] | list[StoredImage]
    if limit_gb is not None:
        images = evict(rock_home(), int(limit_gb * 1e9), dry_run=dry_run)
    else:
        catalog = EnvCatalog(rock_home())
        built = [catalog.built(name) for name in catalog.names()]
        images = old_images({image for bundle in built if bundle is not None for image in bundle.images()})
        if not dry_run:
            images = remove_images(images)
    if as_json:
        print_json([asdict(image) for image in images])
        return
    for image in images:
        say(f"{image.tag}  {size(image.own_bytes)}")
    verb = "would go" if dry_run else "removed"
    say(f"{len(images)} image{'s' if len(images) != 1 else ''} {verb}, {size(sum(i.own_bytes for i in images))}")
