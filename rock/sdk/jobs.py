"""Programs that run in a sandbox beside everything else: started, fed, listened to, watched.

Invariants: bytes pass unchanged and in order; nothing is read before somebody asks, so a program that must not lose
output (``keep="all"``) waits for its reader; a job that is closed leaves no process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import orjson

from rock.domain.errors import InvalidRequest, NotFound
from rock.sdk.lease import HeldLease

_WAIT_S = 20.0
_CALL_S = 60.0
_PIECE_BYTES = 1 << 20


class Job:
    """One program in the background; made by :meth:`Sandbox.start`. With ``async with`` it is closed at the end.

    >>> async with await box.start(["python3", "-i"], pty=(24, 80)) as job:   # doctest: +SKIP
    ...     await job.write("6 * 7\\n")
    ...     async for piece in job.output():
    ...         print(piece.decode(), end="")
    """

    def __init__(self, held: HeldLease, name: str, pid: int) -> None:
        self._held = held
        self.name = name
        self.pid = pid
        """In the sandbox."""
        self.exit_code: int | None = None
        """Known as soon as its last output has been read; 128 + number after a signal."""
        self.errors = ""
        """What it wrote to standard error, if that is not part of its output; known when ``exit_code`` is."""
        self.lost_bytes = 0
        """Output that was gone before it was read (``keep="last"``)."""
        self._offset = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self, *, wait_s: float = _WAIT_S) -> bytes:
        """The next output; empty when there is none within ``wait_s``, or it has ended and all is read (then
        ``exit_code`` is set)."""
        value = await self._held.call(
            "job.read",
            timeout_s=wait_s + _CALL_S,
            job=self.name,
            offset=self._offset,
            wait_s=wait_s,
            raw=True,
            repeatable=True,
        )
        data: bytes = value["data"]
        self.lost_bytes += value["offset"] - self._offset
        self._offset = value["offset"] + len(data)
        if value["ended"]:
            self.exit_code, self.errors = value["exit_code"], value["stderr"]
        return data

    async def output(self) -> AsyncGenerator[bytes, None]:
        """Its output as it comes, to the end."""
        while self.exit_code is None:
            if data := await self.read():
                yield data

    async def wait(self) -> int:
        """Read the rest and drop it; the exit code."""
        async for _ in self.output():
            pass
        assert self.exit_code is not None
        return self.exit_code

    async def write(self, data: bytes | str, *, eof: bool = False) -> None:
        """Give it input; with ``eof`` that was all. Returns when most of it is taken."""
        raw = data.encode() if isinstance(data, str) else data
        for start in range(0, max(1, len(raw)), _PIECE_BYTES):
            last = start + _PIECE_BYTES >= len(raw)
            piece = memoryview(raw)[start : start + _PIECE_BYTES]
            await self._held.call("job.write", timeout_s=_CALL_S, job=self.name, attached=piece, eof=eof and last)

    async def signal(self, signal: str | int = "SIGINT") -> None:
        """Send a signal to the program and all in its group. Raises InvalidRequest (caller) for an unknown one."""
        await self._held.call("job.signal", timeout_s=_CALL_S, job=self.name, signal=signal)

    async def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size. Raises InvalidRequest (caller) if it has none."""
        await self._held.call("job.resize", timeout_s=_CALL_S, job=self.name, pty=[rows, columns])

    async def close(self) -> None:
        """Kill what still runs of it and forget it. Idempotent."""
        if self._held.active and self._held.lost is None:
            await self._held.call("job.close", timeout_s=_CALL_S, job=self.name)


@dataclass(frozen=True, slots=True)
class FileChange:
    kind: Literal["created", "modified", "deleted"]
    path: str
    """Below the watched directory; empty for a watched file itself."""


async def begin(held: HeldLease, op: str, **fields: Any) -> Job:
    """A job that the guest starts for ``op``."""
    value = await held.call(op, timeout_s=_CALL_S, **fields)
    return Job(held, value["job"], value["pid"])


async def pack(held: HeldLease, path: str, gzip: bool) -> AsyncGenerator[bytes, None]:
    """Raises NotFound, InvalidRequest: what the archiver says."""
    async with await begin(held, "tar.pack", path=path, gzip=gzip) as job:
        async for piece in job.output():
            yield piece
        _judge(job)


async def unpack(held: HeldLease, path: str, archive: AsyncIterable[bytes]) -> int:
    """How many entries it had. Raises InvalidRequest."""
    async with await begin(held, "tar.unpack", path=path) as job:
        async for piece in archive:
            await job.write(piece)
        await job.write(b"", eof=True)
        said = b"".join([piece async for piece in job.output()])
        _judge(job)
    return int(said)


async def watch(held: HeldLease, path: str, every_s: float) -> AsyncGenerator[FileChange, None]:
    async with await begin(held, "file.watch", path=path, every_s=every_s) as job:
        rest = b""
        async for piece in job.output():
            *lines, rest = (rest + piece).split(b"\n")
            for line in map(orjson.loads, lines):
                if line["kind"] != "ready":
                    yield FileChange(line["kind"], line["path"])
        _judge(job)


def _judge(job: Job) -> None:
    if job.exit_code:
        said = job.errors.strip().splitlines()
        word = said[-1] if said else f"it ended with {job.exit_code}"
        raise (NotFound if "no such file" in word.lower() else InvalidRequest)(word, cause=job.errors)
