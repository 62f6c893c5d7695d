"""``rock env make-swe``: a data set of bugs in ordinary packages."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from envs.swebench.judge.rows import RowError, image_name
from envs.swebench.make.instance import make_instance
from envs.swebench.make.source import Package, fetch, install_site, parse_requirement
from envs.swebench.make.trying import Suite
from rock.sdk import Rock, ensure_platform
from rock.sdk.home import rock_home

ERRORS = Console(stderr=True)


def make_swe(
    packages: Annotated[
        list[str],
        typer.Argument(metavar="PACKAGE==VERSION…", help="toolz, boltons, tinydb, itsdangerous, markupsafe need none."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Directory to write; default: swebench in the home.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Instances of each package.")] = 7,
    seed: Annotated[int, typer.Option(help="Decides which bugs.")] = 0,
    requires: Annotated[
        list[str], typer.Option("--requires", metavar="REQUIREMENT", help="What the tests need beside pytest.")
    ] = [],  # noqa: B006 - typer copies it
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Sandboxes at a time.")] = 2,
    images: Annotated[
        bool, typer.Option("--images", help="Also build each instance's image, for SWE-bench's own command line.")
    ] = False,
) -> None:
    """Make SWE-bench instances of ordinary packages: one changed expression each, and the tests that notice it.

    Fetches the source distribution, runs its tests in sandboxes with one expression after another changed, and keeps
    what 1 to 20 tests notice while others still pass. Writes DIR/rows.jsonl in SWE-bench's format, and the repository
    of each instance. Uses the platform that runs, or starts one and stops it.

    Examples:
      rock env make-swe toolz markupsafe --count 10
      rock env make-swe my-package==1.2.0 --requires hypothesis --out my-bugs
    """
    target = (out or rock_home() / "swebench").expanduser().absolute()
    try:
        wanted = [parse_requirement(text) for text in packages]
        total = _make(wanted, target, count, seed, requires, jobs)
        if images:
            build_images(target)
    except RowError as error:
        ERRORS.print(f"[bold red]error[/] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    typer.echo(f"{total} instances in {target}. Build the environment and its judge of them:")
    typer.echo(f"  SWEBENCH_DATA={target} rock env build swebench --force")
    typer.echo(f"  SWEBENCH_DATA={target} rock env build swebench-judge --force")


def _make(packages: list[Package], out: Path, count: int, seed: int, requires: list[str], jobs: int) -> int:
    out.mkdir(parents=True, exist_ok=True)
    url, started = ensure_platform()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        try:
            install_site(packages, requires, work / "site")
            rows = []
            for package in packages:
                rows += asyncio.run(_of_package(url, package, work, out, count, seed, jobs))
        finally:
            if started:
                asyncio.run(_shutdown(url))
        shutil.rmtree(out / "site", ignore_errors=True)
        shutil.copytree(work / "site", out / "site")
    temporary = out / ".rows.jsonl"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.rename(out / "rows.jsonl")
    return len(rows)


async def _of_package(
    url: str, package: Package, work: Path, out: Path, count: int, seed: int, jobs: int
) -> list[dict[str, object]]:
    began = time.monotonic()

    def say(text: str) -> None:
        ERRORS.print(f"[dim]{package.name} {package.version}: {text}, {time.monotonic() - began:.0f} s[/]")

    tree = await asyncio.to_thread(fetch, package, work / package.name)
    suite = Suite(tree, work / "site", seed)
    rows: list[dict[str, object]] = []
    async with Rock(url) as rock:
        async for mutant, found in suite.effects(rock, count, jobs, say):
            number = len(rows) + 1
            rows.append(await asyncio.to_thread(make_instance, package, tree, mutant, found, number, out))
    return rows


async def _shutdown(url: str) -> None:
    async with Rock(url) as rock:
        await rock.shutdown()


def build_images(data: Path) -> list[str]:
    """An image for each row, under the name that the official harness looks for on this machine. Blocking."""
    from rock.runtimes.images import build_image

    tags = []
    for line in (data / "rows.jsonl").read_text(encoding="utf-8").splitlines():
        instance_id = json.loads(line)["instance_id"]
        tag = image_name(instance_id, namespace="")
        with tempfile.TemporaryDirectory() as name:
            shutil.copyfile(data / "testbeds" / f"{instance_id}.tar.gz", Path(name, "testbed.tar.gz"))
            build_image(tag, Path(name), dockerfile_text=_DOCKERFILE, extra={"site": data / "site"})
        tags.append(tag)
    return tags


_DOCKERFILE = """ARG BASE
FROM ${BASE}
COPY site /opt/swe/site
ADD testbed.tar.gz /testbed/
WORKDIR /testbed
"""
