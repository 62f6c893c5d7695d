"""A plain sandbox: a persistent shell, one-off commands and files. Nothing of it outlives the ``async with`` block."""

from __future__ import annotations

import asyncio
import base64
import posixpath
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rock.domain.errors import InvalidRequest, NotFound
from rock.sdk.lease import HeldLease
from rock.wire.models import ExecResult, LeaseView

# One frame of a file: large enough that base64 and the round trip don't matter, small against the guest's memory.
CHUNK_BYTES = 1 << 20
# On top of a command's own time-out: the guest kills the command and reports what it printed.
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class ShellResult:
    """What a command in the persistent shell did. ``output`` is standard output and error as they came."""

    exit_code: int
    output: str
    truncated: bool
    """The output was longer than ``max_output_bytes``; the rest is dropped."""
    timed_out: bool
    """The command was killed after ``timeout_s``; the shell lives on."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class FileEntry:
    name: str
    kind: Literal["file", "dir", "link", "other"]
    size_bytes: int
    mtime_s: float
    """Seconds since the epoch."""


class Sandbox:
    """A sandbox of one's own. Made by :meth:`rock.sdk.Rock.sandbox`.

    >>> async with rock.sandbox(image="rock-base:py3.11") as box:   # doctest: +SKIP
    ...     await box.write_file("/tmp/a.py", "print(6 * 7)")
    ...     result = await box.run("cd /tmp && python3 a.py")
    ...     assert (result.exit_code, result.output) == (0, "42\\n")

    Every method raises SandboxLost (platform: the sandbox died, with its evidence), DeadlineExceeded (platform: no
    answer in time) and LeaseExpired (caller: used outside its block), and beside these what its own text says.
    A command that fails is no error: look at ``exit_code``.
    """

    def __init__(self, held: HeldLease) -> None:
        self._held = held
        self._shell: str | int | None = None
        self._shell_busy = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def lease(self) -> LeaseView:
        """The lease held. Raises LeaseExpired outside the ``async with`` block."""
        return self._held.view

    @property
    def id(self) -> str:
        """Id of the sandbox held. Raises LeaseExpired outside the ``async with`` block."""
        return self._held.view.sandbox_id

    async def open(self) -> None:
        """Take the lease; ``async with`` does it for you.

        Raises: ImageNotFound (caller), InvalidRequest (caller), CapacityExceeded (platform: none within ``wait_s``),
        RuntimeUnavailable, PlatformUnavailable, SandboxLost (platform).
        """
        self._shell = None
        await self._held.open()

    async def close(self) -> None:
        """Give the sandbox back; it is removed. Idempotent; takes a few seconds at most; raises nothing."""
        await self._held.close()

    # --- commands ----------------------------------------------------------------------------------------------------

    async def run(self, command: str, *, timeout_s: float = 60.0, max_output_bytes: int = 1 << 20) -> ShellResult:
        """Run a line in the sandbox's persistent shell: directory and variables stay from one call to the next.

        A command that takes longer than ``timeout_s`` is killed, which the result says.
        """
        async with self._shell_busy:
            if self._shell is None:
                self._shell = (await self._held.call("shell.open", timeout_s=30.0))["shell"]
            value = await self._held.call(
                "shell.run",
                timeout_s=timeout_s + _GRACE_S,
                shell=self._shell,
                command=command,
                work_s=timeout_s,
                max_output_bytes=max_output_bytes,
            )
        return ShellResult(**{name: value[name] for name in ShellResult.__slots__})

    async def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        environ: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout_s: float = 60.0,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """Run one program with its arguments, without a shell, apart from everything else.

        Raises: InvalidRequest (caller) if ``argv`` is one string, NotFound (caller) if there is no such program.
        """
        if isinstance(argv, str):
            raise InvalidRequest(
                f"argv is the string {argv!r}, expected a list.", hint="Give a list such as ['ls', '-l'], or use run()."
            )
        optional: dict[str, Any] = {}
        if cwd:
            optional["cwd"] = cwd
        if environ:
            optional["environ"] = dict(environ)
        if stdin:
            optional["stdin_b64"] = _b64(stdin)
        value = await self._held.call(
            "exec",
            timeout_s=timeout_s + _GRACE_S,
            argv=list(argv),
            work_s=timeout_s,
            max_output_bytes=max_output_bytes,
            **optional,
        )
        return ExecResult.model_validate(value)

    # --- files -------------------------------------------------------------------------------------------------------

    async def read_file(self, path: str, *, timeout_s: float = 60.0) -> bytes:
        """The whole content of a file. Raises NotFound (caller) if there is none."""
        return b"".join([chunk async for chunk in self._chunks(path, timeout_s)])

    async def write_file(
        self, path: str, data: bytes | str, *, mode: int | None = None, timeout_s: float = 60.0
    ) -> int:
        """Write ``data`` (text as UTF-8) to a file, replacing it; returns its size in bytes.

        Missing directories are made. Raises: InvalidRequest (caller) if it may not be written, StorageError (caller: no
        room in the sandbox).
        """
        raw = data.encode() if isinstance(data, str) else data
        size_bytes = 0
        for start in range(0, max(len(raw), 1), CHUNK_BYTES):
            size_bytes = await self._append(path, raw[start : start + CHUNK_BYTES], start > 0, mode, timeout_s)
        return size_bytes

    async def upload(self, local: str | Path, path: str, *, timeout_s: float = 60.0) -> None:
        """Copy a file, or a directory with everything in it, from here to ``path`` in the sandbox.

        ``timeout_s`` is for each chunk of 1 MiB. Raises: NotFound (caller) if ``local`` does not exist.
        """
        source = Path(local)
        if await asyncio.to_thread(source.is_dir):
            await self.exec(["mkdir", "-p", path])
            for child in await asyncio.to_thread(lambda: sorted(source.iterdir())):
                await self.upload(child, posixpath.join(path, child.name), timeout_s=timeout_s)
            return
        mode = (await asyncio.to_thread(_stat_file, source)).st_mode & 0o777
        with await asyncio.to_thread(source.open, "rb") as file:
            chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
            await self._append(path, chunk, False, mode, timeout_s)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await self._append(path, chunk, True, None, timeout_s)

    async def download(self, path: str, local: str | Path, *, timeout_s: float = 60.0) -> None:
        """Copy a file, or a directory with everything in it, from ``path`` in the sandbox to here.

        Links and special files in a directory are left out: they could point anywhere on this machine.
        Raises: NotFound (caller) if ``path`` does not exist.
        """
        target = Path(local)
        entries = await self._directory(path)
        if entries is None:
            chunks = self._chunks(path, timeout_s)
            first = await anext(chunks)  # before the target is touched: there may be no such file
            with await asyncio.to_thread(target.open, "wb") as file:
                await asyncio.to_thread(file.write, first)
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
            return
        await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
        for entry in entries:
            if entry.kind in {"file", "dir"} and "/" not in entry.name and entry.name not in {"", ".", ".."}:
                await self.download(posixpath.join(path, entry.name), target / entry.name, timeout_s=timeout_s)

    async def list_files(self, path: str = ".", *, timeout_s: float = 30.0) -> list[FileEntry]:
        """What is in a directory. Raises NotFound (caller) if there is none of that name."""
        value = await self._held.call("file.list", timeout_s=timeout_s, path=path)
        return [FileEntry(**{name: raw[name] for name in FileEntry.__slots__}) for raw in value["entries"]]

    async def _directory(self, path: str) -> list[FileEntry] | None:
        """The entries, or None when it is a file."""
        try:
            return await self.list_files(path)
        except NotFound:  # a file, or nothing: reading it will tell
            return None

    async def _append(self, path: str, chunk: bytes, append: bool, mode: int | None, timeout_s: float) -> int:
        fields: dict[str, Any] = {"append": append} if mode is None else {"append": append, "mode": mode}
        value = await self._held.call("file.write", timeout_s=timeout_s, path=path, data_b64=_b64(chunk), **fields)
        await self._held.drain()
        return int(value["size_bytes"])

    async def _chunks(self, path: str, timeout_s: float) -> AsyncIterator[bytes]:
        offset = 0
        while True:
            value = await self._held.call(
                "file.read", timeout_s=timeout_s, path=path, offset=offset, length=CHUNK_BYTES
            )
            chunk = base64.b64decode(value["data_b64"])
            offset += len(chunk)
            yield chunk
            if value["eof"] or not chunk:
                return


def _b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def _stat_file(path: Path) -> Any:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no file {path} here.", hint="Give the path of an existing file or directory."
        ) from error
