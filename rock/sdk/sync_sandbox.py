"""`Sandbox` and what it hands out, for code without an event loop. Thin calls; nothing is implemented here twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from rock.domain.errors import RockError
from rock.sdk._loop_thread import _LoopThread
from rock.sdk.forwarding import Forward
from rock.sdk.jobs import FileChange, Job
from rock.sdk.sandbox import FileEntry, Sandbox, Shell, ShellResult, Usage
from rock.wire.models import ExecResult, LeaseView

T = TypeVar("T")


class SandboxSync:
    """`Sandbox` without ``await``; its methods' texts hold here too."""

    def __init__(self, loop: _LoopThread, inner: Sandbox) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lease(self) -> LeaseView:
        return self._inner.lease

    @property
    def id(self) -> str:
        return self._inner.id

    def open(self) -> None:
        self._loop.run(self._inner.open())

    def close(self) -> None:
        self._loop.run(self._inner.close())

    def run(self, command: str, *, timeout_s: float = 60.0, max_output_bytes: int = 1 << 20) -> ShellResult:
        return self._loop.run(self._inner.run(command, timeout_s=timeout_s, max_output_bytes=max_output_bytes))

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        environ: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout_s: float = 60.0,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        return self._loop.run(
            self._inner.exec(
                argv, cwd=cwd, environ=environ, stdin=stdin, timeout_s=timeout_s, max_output_bytes=max_output_bytes
            )
        )

    def read_file(self, path: str, *, timeout_s: float = 60.0) -> bytes:
        return self._loop.run(self._inner.read_file(path, timeout_s=timeout_s))

    def write_file(self, path: str, data: bytes | str, *, mode: int | None = None, timeout_s: float = 60.0) -> int:
        return self._loop.run(self._inner.write_file(path, data, mode=mode, timeout_s=timeout_s))

    def upload(self, local: str | Path, path: str, *, timeout_s: float = 60.0) -> None:
        self._loop.run(self._inner.upload(local, path, timeout_s=timeout_s))

    def download(self, path: str, local: str | Path, *, timeout_s: float = 60.0) -> None:
        self._loop.run(self._inner.download(path, local, timeout_s=timeout_s))

    def list_files(self, path: str = ".", *, timeout_s: float = 30.0) -> list[FileEntry]:
        return self._loop.run(self._inner.list_files(path, timeout_s=timeout_s))

    def shell(self, *, cwd: str = "", environ: Mapping[str, str] | None = None) -> ShellSync:
        return ShellSync(self._loop, self._inner.shell(cwd=cwd, environ=environ))

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        environ: Mapping[str, str] | None = None,
        pty: tuple[int, int] | None = None,
        keep: Literal["last", "all"] = "last",
        limit_bytes: int = 1 << 20,
        merge: bool = True,
    ) -> JobSync:
        started = self._inner.start(
            argv, cwd=cwd, environ=environ, pty=pty, keep=keep, limit_bytes=limit_bytes, merge=merge
        )
        return JobSync(self._loop, self._loop.run(started))

    def download_tar(self, path: str, *, gzip: bool = False) -> Iterator[bytes]:
        return _each(self._loop, self._inner.download_tar(path, gzip=gzip))

    def upload_tar(self, archive: Iterable[bytes], path: str) -> int:
        return self._loop.run(self._inner.upload_tar(_drawn_from(iter(archive)), path))

    def watch(self, path: str, *, every_s: float = 0.1) -> Iterator[FileChange]:
        return _each(self._loop, self._inner.watch(path, every_s=every_s))

    def forward(self, port: int, *, local_port: int = 0) -> ForwardSync:
        return ForwardSync(self._loop, self._inner.forward(port, local_port=local_port))

    def usage(self) -> Usage:
        return self._loop.run(self._inner.usage())

    def pause(self) -> int:
        return self._loop.run(self._inner.pause())

    def resume(self) -> None:
        self._loop.run(self._inner.resume())

    def snapshot(self) -> str:
        return self._loop.run(self._inner.snapshot())

    def fork(self, count: int = 1) -> list[SandboxSync]:
        return [SandboxSync(self._loop, inner) for inner in self._loop.run(self._inner.fork(count))]


class ShellSync:
    """`Shell` without ``await``."""

    def __init__(self, loop: _LoopThread, inner: Shell) -> None:
        self._loop = loop
        self._inner = inner

    @property
    def opened(self) -> bool:
        return self._inner.opened

    def run(self, command: str, *, timeout_s: float = 60.0, max_output_bytes: int = 1 << 20) -> ShellResult:
        return self._loop.run(self._inner.run(command, timeout_s=timeout_s, max_output_bytes=max_output_bytes))

    def interrupt(self) -> None:
        self._loop.run(self._inner.interrupt())

    def close(self) -> None:
        self._loop.run(self._inner.close())


class JobSync:
    """`Job` without ``await``."""

    def __init__(self, loop: _LoopThread, inner: Job) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def exit_code(self) -> int | None:
        return self._inner.exit_code

    @property
    def errors(self) -> str:
        return self._inner.errors

    @property
    def lost_bytes(self) -> int:
        return self._inner.lost_bytes

    def read(self, *, wait_s: float = 20.0) -> bytes:
        return self._loop.run(self._inner.read(wait_s=wait_s))

    def output(self) -> Iterator[bytes]:
        return _each(self._loop, self._inner.output())

    def wait(self) -> int:
        return self._loop.run(self._inner.wait())

    def write(self, data: bytes | str, *, eof: bool = False) -> None:
        self._loop.run(self._inner.write(data, eof=eof))

    def signal(self, signal: str | int = "SIGINT") -> None:
        self._loop.run(self._inner.signal(signal))

    def resize(self, rows: int, columns: int) -> None:
        self._loop.run(self._inner.resize(rows, columns))

    def close(self) -> None:
        self._loop.run(self._inner.close())


class ForwardSync:
    """`Forward` without ``await``."""

    def __init__(self, loop: _LoopThread, inner: Forward) -> None:
        self._loop = loop
        self._inner = inner

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def local_port(self) -> int:
        return self._inner.local_port

    @property
    def refused(self) -> RockError | None:
        return self._inner.refused

    def open(self) -> None:
        self._loop.run(self._inner.open())

    def close(self) -> None:
        self._loop.run(self._inner.close())


def _each(loop: _LoopThread, items: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items one by one; ended early, the generator is closed on its loop."""

    async def take() -> tuple[bool, Any]:
        try:
            return True, await anext(items)
        except StopAsyncIteration:
            return False, None

    async def end() -> None:
        await items.aclose()

    try:
        while (found := loop.run(take()))[0]:
            yield found[1]
    finally:
        loop.run(end())


async def _drawn_from(items: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """In a thread: what the caller iterates over may block."""
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item
