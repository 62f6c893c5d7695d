"""The repository under /testbed, and commands in it. Standard library only: the agent's side uses it as well.

It comes out of an archive in the data, or it is the image's own, as in the official images. Those bring a conda
environment as well, in which commands are to run.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/testbed")
CONDA = Path("/opt/miniconda3")
_CONDA_ENV = "testbed"
_ACTIVATE_S = 60.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did. ``output``: standard output and error as they came, the middle left out if too long."""

    exit_code: int
    output: str
    timed_out: bool


def lay_out(data: Path, task: str, root: Path = ROOT) -> bool:
    """Make ``root`` the repository of ``task``; whether it is the image's own.

    Raises RuntimeError when there is neither an archive in ``data`` nor a repository.
    """
    archive = data / "testbeds" / f"{task}.tar.gz"
    if archive.is_file():
        unpack(archive, root)
        return False
    if not (root / ".git").exists():
        raise RuntimeError(f"{task} has no repository: neither {archive} nor {root / '.git'} exists in this image.")
    return True


def conda_environ(conda: Path = CONDA) -> Mapping[str, str] | None:
    """The variables of the image's conda environment, activated; None where it has none. Raises RuntimeError."""
    if not (conda / "envs" / _CONDA_ENV).is_dir():
        return None
    script = f'source "{conda}/bin/activate" && conda activate {_CONDA_ENV} && env -0'
    ran = run(["bash", "-c", script], cwd=Path("/"), timeout_s=_ACTIVATE_S, max_bytes=1 << 20)
    if ran.exit_code != 0:
        raise RuntimeError(f"the environment {_CONDA_ENV!r} of {conda} cannot be activated: {ran.output[-500:]}")
    found = (entry.partition("=") for entry in ran.output.split("\0") if "=" in entry)
    return {name: value for name, _, value in found}


def unpack(archive: Path, root: Path = ROOT) -> None:
    """Replace what is in ``root``, which exists, by the archive's content."""
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")


def run(
    argv: Sequence[str], *, cwd: Path, timeout_s: float, max_bytes: int, environ: Mapping[str, str] | None = None
) -> Ran:
    """Run to the end, or kill after ``timeout_s``; nothing that it started in its process group lives on.

    Of longer output than ``max_bytes`` the first and the last half are kept. ``environ``: in the place of our own.
    """
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        output, timed_out = _read(process.stdout.fileno(), process, time.monotonic() + timeout_s, max_bytes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return Ran(process.returncode, output, timed_out)


def _read(fd: int, process: subprocess.Popen[bytes], deadline: float, max_bytes: int) -> tuple[str, bool]:
    """Until the command ends: not until all that holds its output does, which may be something in the background."""
    kept = _Ends(max_bytes)
    os.set_blocking(fd, False)
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            for _ in selector.select(0 if ended else min(0.05, max(0.0, deadline - time.monotonic()))):
                data = os.read(fd, _READ_BYTES)
                if not data:
                    return kept.text(), not _ends_by(process, deadline)
                kept.add(data)
                break
            else:
                if ended:
                    return kept.text(), False
    return kept.text(), True


def _ends_by(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


class _Ends:
    """The beginning and the end of what is added, in bounded memory."""

    def __init__(self, max_bytes: int) -> None:
        self._half = max(1, max_bytes // 2)
        self._head, self._tail, self._total = b"", b"", 0

    def add(self, data: bytes) -> None:
        self._total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-self._half :]

    def text(self) -> str:
        lost = self._total - len(self._head) - len(self._tail)
        middle = f"\n[… {lost} bytes left out …]\n".encode() if lost else b""
        return (self._head + middle + self._tail).decode("utf-8", errors="replace")
