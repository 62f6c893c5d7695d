"""What the benchmarks of the platform share: percentiles, the machine's word on itself, a platform of their own."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rock.sdk.home import read_server

ENVS = Path(__file__).parent
"""Environments made for measuring lie beside the benchmarks."""


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile, ``share`` from 0 to 1: a value that was really seen."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def p50_ms(values: Sequence[float]) -> float:
    return round(1e3 * percentile(values, 0.5), 3)


def p99_ms(values: Sequence[float]) -> float:
    return round(1e3 * percentile(values, 0.99), 3)


def machine() -> dict[str, Any]:
    """How busy it was: numbers of a busy machine are upper bounds."""
    return {"cores": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 1)}


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A state directory of our own, gone afterwards; its path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="rb-"))
    path.chmod(0o711)  # sandboxes pass through it as another user
    known = {name: os.environ.get(name) for name in ("ROCK_ENV_PATH", "ROCK_URL", "ROCK_HOME", "ROCK_KEY")}
    os.environ["ROCK_ENV_PATH"] = os.pathsep.join(filter(None, [str(ENVS), known["ROCK_ENV_PATH"]]))
    for name in ("ROCK_URL", "ROCK_HOME", "ROCK_KEY"):
        os.environ.pop(name, None)
    try:
        yield path
    finally:
        for name, value in known.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def platform(
    directory: Path, *, runtime: str, capacity: int, pools: Mapping[str, int], nodes: int = 0
) -> Iterator[str]:
    """A platform as ``rock up -d`` starts it, on a free port; stopped with all its sandboxes afterwards."""
    rock, where = [sys.executable, "-m", "rock.cli"], ["--home", str(directory)]
    up = ["--runtime", runtime, "--capacity", str(capacity), "--port", "0", "--nodes", str(nodes)]
    up += [word for name, count in pools.items() for word in ("--pool", f"{name}={count}")]
    subprocess.run([*rock, "up", "--detach", *where, *up], check=True, stdout=subprocess.DEVNULL)
    try:
        server = read_server(directory)
        assert server is not None
        yield server.url
    finally:
        subprocess.run([*rock, "down", *where], check=True, stdout=subprocess.DEVNULL)
