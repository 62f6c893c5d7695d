"""Directories of this machine as tar streams, made and unpacked in a thread while the other end is at work.

Invariant: what a sandbox sends can write below the target only, and makes files and directories only: a link in it
could point anywhere on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable
from pathlib import Path
from typing import IO

from rock.domain.errors import InvalidRequest

_PIECE_BYTES = 1 << 20


async def packed(directory: Path) -> AsyncGenerator[bytes, None]:
    """What ``directory`` holds; links stay links."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as reader:
        work = asyncio.create_task(asyncio.to_thread(_pack, directory, write_fd))
        try:
            while data := await asyncio.to_thread(reader.read, _PIECE_BYTES):
                yield data
            await work
        finally:
            reader.close()  # a packer whose reader has left ends with a broken pipe
            with contextlib.suppress(OSError):
                await asyncio.shield(work)


async def unpacked(archive: AsyncIterable[bytes], target: Path) -> None:
    """Raises what ``archive`` raises; InvalidRequest for an entry that leads outside."""
    read_fd, write_fd = os.pipe()
    writer = os.fdopen(write_fd, "wb", buffering=0)
    work = asyncio.create_task(asyncio.to_thread(_unpack, read_fd, target))
    try:
        try:
            async for data in archive:
                await asyncio.to_thread(_write_all, writer, data)
        finally:
            writer.close()
        await work
    except BrokenPipeError:
        await work  # it says why it stopped reading
    except BaseException:
        with contextlib.suppress(InvalidRequest, OSError, tarfile.TarError):
            await asyncio.shield(work)
        raise


def _write_all(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _pack(directory: Path, write_fd: int) -> None:
    with os.fdopen(write_fd, "wb") as writer, tarfile.open(fileobj=writer, mode="w|", bufsize=_PIECE_BYTES) as archive:
        for child in sorted(directory.iterdir()):
            archive.add(child, child.name)


def _unpack(read_fd: int, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with os.fdopen(read_fd, "rb") as reader, tarfile.open(fileobj=reader, mode="r|*", bufsize=_PIECE_BYTES) as archive:
        for entry in archive:
            if not (entry.isfile() or entry.isdir()):
                continue
            try:
                archive.extract(entry, target, filter="data")
            except tarfile.FilterError as error:
                raise InvalidRequest(
                    f"the sandbox sent {entry.name!r}, which is not to be unpacked: {error}"
                ) from error
