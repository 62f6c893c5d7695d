"""A plain sandbox: shells, programs, files, ports, copies of it. Nothing of it outlives the ``async with`` block."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rock.domain.errors import InvalidRequest, NotFound
from rock.sdk import archives, forking, jobs
from rock.sdk.forwarding import Forward, tunnel
from rock.sdk.jobs import FileChange, Job
from rock.sdk.lease import HeldLease
from rock.wire.models import ExecResult, LeaseView

# One frame of a file: large enough that the round trip doesn't matter, small against the guest's memory.
CHUNK_BYTES = 4 << 20
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


@dataclass(frozen=True, slots=True)
class DiskUsage:
    total_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox takes at this moment, by its own account."""

    processes: int
    """Without the platform's own."""
    cpu_s: float
    """Processor seconds since it began, of its living processes and those they have waited for."""
    rss_bytes: int
    disks: dict[str, DiskUsage]
    """By mount point: ``/``, ``/tmp``, ``/dev/shm``."""
    paused: bool


class Shell:
    """A persistent shell of its own: directory, variables and functions stay. Made by :meth:`Sandbox.shell`."""

    def __init__(self, held: HeldLease, cwd: str = "", environ: Mapping[str, str] | None = None) -> None:
        self._held = held
        self._cwd, self._environ = cwd, dict(environ or {})
        self._id: str | None = None
        self._busy = asyncio.Lock()

    @property
    def opened(self) -> bool:
        return self._id is not None

    async def run(self, command: str, *, timeout_s: float = 60.0, max_output_bytes: int = 1 << 20) -> ShellResult:
        """Run a line. One that takes longer than ``timeout_s`` is killed with all it started; the shell goes on. A
        shell that was ended (by ``exit``) is opened anew at the next line.

        Lines of one shell wait for each other; those of several run side by side.
        """
        async with self._busy:
            if self._id is None:
                optional: dict[str, Any] = {
                    name: v for name, v in (("cwd", self._cwd), ("environ", self._environ)) if v
                }
                self._id = (await self._held.call("shell.open", timeout_s=30.0, **optional))["shell"]
            value = await self._held.call(
                "shell.run",
                timeout_s=timeout_s + _GRACE_S,
                shell=self._id,
                command=command,
                work_s=timeout_s,
                max_output_bytes=max_output_bytes,
            )
            if value.get("shell_lost"):
                self._id = None
        return ShellResult(**{name: value[name] for name in ShellResult.__slots__})

    async def interrupt(self) -> None:
        """End the line under way, whose result then says ``timed_out``; the shell goes on."""
        if self._id is not None:
            await self._held.call("shell.interrupt", timeout_s=30.0, shell=self._id)

    async def close(self) -> None:
        """End it with what it runs. Idempotent."""
        shell, self._id = self._id, None
        if shell is not None and self._held.active and self._held.lost is None:
            await self._held.call("shell.close", timeout_s=30.0, shell=shell)


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
        self._shell = Shell(held)

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
        self._shell = Shell(self._held)
        await self._held.open()

    async def close(self) -> None:
        """Give the sandbox back; it is removed. Idempotent; takes a few seconds at most; raises nothing."""
        await self._held.close()

    # --- commands ----------------------------------------------------------------------------------------------------

    async def run(self, command: str, *, timeout_s: float = 60.0, max_output_bytes: int = 1 << 20) -> ShellResult:
        """Run a line in the sandbox's persistent shell: directory and variables stay from one call to the next.

        A command that takes longer than ``timeout_s`` is killed, which the result says.
        """
        return await self._shell.run(command, timeout_s=timeout_s, max_output_bytes=max_output_bytes)

    @property
    def shell_opened(self) -> bool:
        """Whether :meth:`run` has been used."""
        return self._shell.opened

    def shell(self, *, cwd: str = "", environ: Mapping[str, str] | None = None) -> Shell:
        """Another persistent shell beside that of :meth:`run`; it is opened with its first line."""
        return Shell(self._held, cwd, environ)

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "",
        environ: Mapping[str, str] | None = None,
        pty: tuple[int, int] | None = None,
        keep: Literal["last", "all"] = "last",
        limit_bytes: int = 1 << 20,
        merge: bool = True,
    ) -> Job:
        """Start a program in the background: its output streams, its input is given at any time.

        Args:
            pty: rows and columns of a terminal of its own; None: pipes.
            keep: what becomes of output beyond ``limit_bytes`` that nobody has read: ``"last"`` forgets the oldest,
                ``"all"`` makes the program wait.
            merge: standard error is part of the output; else ``job.errors`` holds it (the first and last of 64 KiB).

        Raises: NotFound (caller) if there is no such program, Conflict (caller: 64 are running).
        """
        if isinstance(argv, str):
            raise InvalidRequest(f"argv is the string {argv!r}, expected a list.", hint="Give ['sh', '-c', '…'].")
        fields: dict[str, Any] = {"argv": list(argv), "keep": keep, "limit_bytes": limit_bytes, "merge": merge}
        fields |= {"cwd": cwd} if cwd else {}
        fields |= {"environ": dict(environ)} if environ else {}
        fields |= {"pty": list(pty)} if pty else {}
        return await jobs.begin(self._held, "job.start", **fields)

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

        ``timeout_s`` is for each chunk of 4 MiB. Raises: NotFound (caller) if ``local`` does not exist.
        """
        source = Path(local)
        if await asyncio.to_thread(source.is_dir):
            await jobs.unpack(self._held, path, archives.packed(source))
            return
        mode = (await asyncio.to_thread(_stat_file, source)).st_mode & 0o777
        with await asyncio.to_thread(source.open, "rb") as file:
            chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
            await self._append(path, chunk, False, mode, timeout_s)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await self._append(path, chunk, True, None, timeout_s)

    async def download(self, path: str, local: str | Path, *, timeout_s: float = 60.0) -> None:
        """Copy a file, or a directory with everything in it, from ``path`` in the sandbox to here.

        Of a directory, links and special files are left out: they could point anywhere on this machine.
        Raises: NotFound (caller) if ``path`` does not exist.
        """
        target = Path(local)
        try:
            await self.list_files(path)
        except NotFound:  # a file, or nothing: reading it will tell
            pass
        else:
            await archives.unpacked(jobs.pack(self._held, path, False), target)
            return
        chunks = self._chunks(path, timeout_s)
        first = await anext(chunks)  # before the target is touched: there may be no such file
        with await asyncio.to_thread(target.open, "wb") as file:
            await asyncio.to_thread(file.write, first)
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)

    def download_tar(self, path: str, *, gzip: bool = False) -> AsyncGenerator[bytes, None]:
        """A file, or what a directory holds, as a stream of one tar archive, with links and modes.

        Raises: NotFound (caller) if ``path`` does not exist.
        """
        return jobs.pack(self._held, path, gzip)

    async def upload_tar(self, archive: AsyncIterable[bytes], path: str) -> int:
        """Unpack a tar archive, plain or compressed, under ``path`` as it comes; how many entries it had.

        Raises: InvalidRequest (caller) if it is no archive, or an entry lies outside of ``path``.
        """
        return await jobs.unpack(self._held, path, archive)

    def watch(self, path: str, *, every_s: float = 0.1) -> AsyncGenerator[FileChange, None]:
        """Changes below a directory, or of a file, until the iterator is closed; looked for every ``every_s``.

        What comes and goes between two looks is not seen. Raises: InvalidRequest (caller) beyond 50,000 files.
        """
        return jobs.watch(self._held, path, every_s)

    async def list_files(self, path: str = ".", *, timeout_s: float = 30.0) -> list[FileEntry]:
        """What is in a directory. Raises NotFound (caller) if there is none of that name."""
        value = await self._held.call("file.list", timeout_s=timeout_s, path=path)
        return [FileEntry(**{name: raw[name] for name in FileEntry.__slots__}) for raw in value["entries"]]

    # --- the sandbox as a whole --------------------------------------------------------------------------------------

    def forward(self, port: int, *, local_port: int = 0) -> Forward:
        """A port of this machine's loopback that leads to ``port`` in the sandbox; use it with ``async with``. The
        sandbox needs no network for it. ``local_port`` 0: any that is free."""
        return Forward(lambda wanted: tunnel(self.lease, wanted), port, local_port)

    async def usage(self) -> Usage:
        """Processes, processor time, memory and disks, as they are now."""
        value = await self._held.call("usage", timeout_s=30.0, repeatable=True)
        disks = {path: DiskUsage(**disk) for path, disk in value["disks"].items()}
        return Usage(value["processes"], value["cpu_s"], value["rss_bytes"], disks, value["paused"])

    async def pause(self) -> int:
        """Stop every process in it: it takes no processor time, keeps its memory and its lease, and is not taken for
        dead. Returns how many. Files can still be read; all else is refused with Conflict until :meth:`resume`."""
        return int((await self._held.call("pause", timeout_s=30.0, repeatable=True))["processes"])

    async def resume(self) -> None:
        """Let everything go on where it stood. Idempotent."""
        await self._held.call("resume", timeout_s=30.0, repeatable=True)

    async def snapshot(self) -> str:
        """Keep the files of its writable root as an image until the next snapshot or the end of the lease; its name, of
        which sandboxes can be made meanwhile. Empty where there is nothing to keep: a read-only root, or bubblewrap."""
        return await self._held.snapshot_for_fork(timeout_s=60.0)

    async def fork(self, count: int = 1) -> list[Sandbox]:
        """``count`` new sandboxes with this one's files, and its shell's directory and exported variables; each is open
        and has a lease of its own: close each. Processes are not copied.

        Files are those in ``/tmp``; with a writable root under Docker those of the whole root, too. Raises: as
        :meth:`open`; InvalidRequest (caller) if ``count`` is below 1. If one cannot be made, none is left.
        """
        return await forking.fork(self, self._held, count, Sandbox)

    async def _append(self, path: str, chunk: bytes, append: bool, mode: int | None, timeout_s: float) -> int:
        fields: dict[str, Any] = {"append": append} if mode is None else {"append": append, "mode": mode}
        value = await self._held.call("file.write", timeout_s=timeout_s, path=path, attached=chunk, **fields)
        return int(value["size_bytes"])

    async def _chunks(self, path: str, timeout_s: float) -> AsyncIterator[bytes]:
        offset = 0
        while True:
            value = await self._held.call(
                "file.read", timeout_s=timeout_s, path=path, offset=offset, length=CHUNK_BYTES, raw=True
            )
            chunk: bytes = value["data"]
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
