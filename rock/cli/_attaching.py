"""This terminal on a program in a sandbox: what is typed goes there as it is typed, what it prints comes here.

Invariant: the terminal is given back as it was, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rock.sdk import Job, Sandbox

_READ_BYTES = 1 << 16
_BASH = "if command -v bash >/dev/null; then exec bash; else exec sh; fi"


async def attach(box: Sandbox, argv: Sequence[str]) -> int:
    """Run ``argv`` (none: a shell) on this terminal; its exit code. Raises RockError."""
    command = list(argv) or ["sh", "-c", _BASH]
    columns, rows = shutil.get_terminal_size()
    async with await box.start(command, pty=(rows, columns), environ=_environ()) as job:
        with _raw(sys.stdin.fileno()):
            typing = asyncio.create_task(_type(job))
            sizing = _follow_size(job)
            try:
                async for piece in job.output():
                    await asyncio.to_thread(_print, piece)
            finally:
                typing.cancel()
                sizing()
                await asyncio.gather(typing, return_exceptions=True)
        assert job.exit_code is not None
        return job.exit_code


def _environ() -> dict[str, str]:
    return {"TERM": os.environ.get("TERM", "xterm")}


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Every key goes through, Ctrl-C too. Does nothing where there is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _type(job: Job) -> None:
    """What is typed, or piped, in here; its end is the end there."""
    loop = asyncio.get_running_loop()
    fd = sys.stdin.fileno()
    typed: asyncio.Queue[bytes] = asyncio.Queue()

    def readable() -> None:
        data = os.read(fd, _READ_BYTES)
        typed.put_nowait(data)
        if not data:
            loop.remove_reader(fd)

    loop.add_reader(fd, readable)
    try:
        while data := await typed.get():
            await job.write(data)
        await job.write(b"", eof=True)
    finally:
        loop.remove_reader(fd)


def _follow_size(job: Job) -> _Stop:
    loop = asyncio.get_running_loop()
    resizing: set[asyncio.Task[None]] = set()

    def changed() -> None:
        columns, rows = shutil.get_terminal_size()
        task = loop.create_task(job.resize(rows, columns))
        resizing.add(task)
        task.add_done_callback(resizing.discard)

    loop.add_signal_handler(signal.SIGWINCH, changed)
    return _Stop(loop)


class _Stop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self) -> None:
        self._loop.remove_signal_handler(signal.SIGWINCH)
