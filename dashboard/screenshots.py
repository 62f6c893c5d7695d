"""Pictures of the page for the documentation: ``python -m dashboard.screenshots --run RUN --out docs/img``.

Serves the dashboard for the given platform on a free port, opens it in a headless Chromium and saves every page,
light and dark. Needs playwright and a Chromium; downloads neither.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dashboard import server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

log = logging.getLogger(__name__)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
WIDE = (1280, 900)
READY_TIMEOUT_MS = 60_000
PATHS = {
    "morning": "",
    "fleet": "fleet",
    "run": "run",
    "compare": "compare",
    "incidents": "incidents",
    "episode": "episode",
    "rhythm": "rhythm",
}
MARKS = {
    "morning": ".js-plotly-plot .main-svg",
    "compare": ".js-plotly-plot .main-svg, .rk-empty",
    "incidents": ".rk-incidents, .rk-empty",
    "fleet": ".rk-cards",
    "run": ".js-plotly-plot .main-svg",
    "episode": ".rk-turn",
    "rhythm": ".rk-rhythm, .rk-empty",
}
"""What a page has when it is drawn."""
# No spinner or running mark, no element that is about to be replaced, fonts there.
QUIET = """() => document.fonts.status === 'loaded'
  && !document.querySelector('[data-testid="stSpinner"], [data-testid="stSkeleton"]')
  && document.querySelector('[data-testid="stApp"]').dataset.testScriptState === 'notRunning'"""


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine. Raises RuntimeError if there is none."""
    from playwright.sync_api import sync_playwright

    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        raise RuntimeError("Chromium is not installed ('apt-get install chromium')")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield chromium
        finally:
            chromium.close()


def wait_until_drawn(page: Page, mark: str) -> None:
    page.wait_for_selector(mark, timeout=READY_TIMEOUT_MS)
    page.wait_for_function(QUIET, timeout=READY_TIMEOUT_MS)


def shoot(
    chromium: Browser,
    address: str,
    out: Path,
    *,
    run_id: str = "",
    episode_id: str = "",
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark"),
    size: tuple[int, int] = WIDE,
    whole: bool = False,
    suffix: str = "",
) -> list[Path]:
    """One picture per page and colour scheme; ``whole`` shows what lies below the first screen as well."""
    out.mkdir(parents=True, exist_ok=True)
    saved = []
    width, height = size
    for scheme in schemes:
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        for name, mark in MARKS.items():
            query = "&".join(f"{k}={v}" for k, v in (("run", run_id), ("episode", episode_id)) if v)
            page.goto(f"{address}/{PATHS[name]}?{query}")
            wait_until_drawn(page, mark)
            if whole:
                full = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
                page.set_viewport_size({"width": width, "height": max(height, int(full))})
                wait_until_drawn(page, mark)
            path = out / f"{name}-{scheme}{suffix}.png"
            page.screenshot(path=path)
            saved.append(path)
            page.set_viewport_size({"width": width, "height": height})
        context.close()
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default=None, help="platform to show (default: the one that runs here)")
    parser.add_argument("--run", default="", help="run to show (default: the youngest)")
    parser.add_argument("--episode", default="", help="episode to show (default: the latest)")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    parser.add_argument("--whole", action="store_true", help="whole pages instead of the first screen")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    child, served = server.start("127.0.0.1", 0, args.url)
    try:
        with browser() as chromium:
            for path in shoot(
                chromium, served.url, args.out, run_id=args.run, episode_id=args.episode, whole=args.whole
            ):
                log.info("%s", path)
    finally:
        server.end(child)


if __name__ == "__main__":
    main()
