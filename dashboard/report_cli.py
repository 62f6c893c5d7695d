"""``rock report``: a run as one file to keep or to send."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dashboard.requirements import require_charts
from rock.sdk import InvalidRequest, NotFound, Rock

PDF_S = 120.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def report(
    run: Annotated[str, typer.Argument(metavar="RUN|last", help="Id of a run; `rock run list` shows them.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. Default: RUN.html, or RUN.pdf.", dir_okay=False)
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write a PDF, printed by a Chromium of this machine.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="Platform to ask. Default: $ROCK_URL, else the one that runs here.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a run into one file that loads nothing from elsewhere: sentence, curves, ledger, incidents, recipe.

    Examples:
      rock report last
      rock report run-1f2e3d4c5b -o monday.html
      rock report last --pdf
    """
    require_charts("report")
    chromium = _chromium() if pdf else ""
    run_id, html = asyncio.run(_written(run, url))
    target = out or Path(f"{run_id}.{'pdf' if pdf else 'html'}")
    if pdf:
        _print(chromium, html, target)
    else:
        target.write_text(html, encoding="utf-8")
    Console(highlight=False, soft_wrap=True).print(f"Wrote {target}  ({target.stat().st_size / 1e6:.1f} MB)")


async def _written(run: str, url: str | None) -> tuple[str, str]:
    from dashboard.report import report_html
    from dashboard.snapshots import run_snapshot

    async with Rock(url) as rock:
        if run == "last":
            runs = await rock.runs()
            if not runs:
                raise NotFound("There is no run yet.", hint="Start one with `rock train RECIPE`.")
            run = max(runs, key=lambda r: r.created_at).id
        snap = await run_snapshot(rock, run, None)
        return run, report_html(snap, datetime.now(UTC), rock.url)


def _chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        raise InvalidRequest(
            "--pdf needs Chromium, which is not installed.",
            hint="Install it (`apt-get install chromium`), or leave --pdf out and print the HTML file.",
        )
    return found


def _print(chromium: str, html: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rock-report-") as folder:
        page = Path(folder, "report.html")
        page.write_text(html, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer"]
        flags += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=10000"]
        command = [chromium, *flags, f"--print-to-pdf={target.absolute()}", page.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PDF_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise InvalidRequest(f"Chromium did not print within {PDF_S:.0f} s.") from error
    if done.returncode or not target.exists():
        raise InvalidRequest(f"Chromium could not print the report: {done.stderr.strip()[-500:]}")
