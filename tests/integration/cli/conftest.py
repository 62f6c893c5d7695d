"""`rock` as people run it: a process of its own, a state directory of its own, a free port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Rock = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rock(rock_home: Path) -> Iterator[Rock]:
    """``rock("ps", "--json", code=0)``. Whatever platform the test leaves running is stopped at its end."""

    def run(
        *arguments: str, code: int | None = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "rock.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "COLUMNS": "200", **(env or {})},
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    yield run
    if (rock_home / "instance").exists():
        run("down", code=None)
