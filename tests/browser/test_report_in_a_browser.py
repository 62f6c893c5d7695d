"""`rock report` of a real platform's run, opened and printed by a real Chromium."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


def rock(scene: Any, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rock.cli", *words, "--url", scene.platform.url],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ROCK_KEY": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_draws_its_charts_and_asks_nobody(scene: Any, chromium: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert str(out) in rock(scene, "report", "last", "-o", str(out))
    context = chromium.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert page.locator(".js-plotly-plot").count() >= 3
    assert "browser-test" in page.locator(".rk-banner").inner_text()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_it_can_be_printed(scene: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    rock(scene, "report", "last", "--pdf", "-o", str(out))
    assert out.read_bytes().startswith(b"%PDF-")
    assert out.stat().st_size > 20_000
