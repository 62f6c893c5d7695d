"""`rock` as people run it: its own arguments and environment, a state directory of its own, a free port."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

Rock = Callable[..., subprocess.CompletedProcess[str]]
Runner = Callable[[list[str], dict[str, str]], subprocess.CompletedProcess[str]]


def in_this_process(arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The console script's function with its own arguments, environment and output: starting Python each time would
    cost more than everything the command does. What it starts (``up -d``) is a process of its own all the same."""
    from rock.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.dict(os.environ, environ),
        mock.patch.object(sys, "argv", ["rock", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    return subprocess.CompletedProcess(["rock", *arguments], code, out.getvalue(), err.getvalue())


def in_a_process(arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rock.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environ},
        check=False,
    )


def checked(run: Runner) -> Rock:
    def rock(*arguments: str, code: int | None = 0, env: dict[str, str] | None = None) -> Any:
        done = run(list(arguments), {"COLUMNS": "200", **(env or {})})
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return rock


@pytest.fixture
def rock(rock_home: Path) -> Iterator[Rock]:
    """``rock("ps", "--json", code=0)``. Whatever platform the test leaves running is stopped at its end."""
    run = checked(in_this_process)
    yield run
    if (rock_home / "instance").exists():
        run("down", code=None)


@pytest.fixture
def rock_process(rock: Rock) -> Rock:
    """The same as a process of its own."""
    return checked(in_a_process)
