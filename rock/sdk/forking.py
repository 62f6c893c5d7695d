"""Copies of a sandbox: what it has written goes into new ones of the same kind.

Invariants: the copies are independent of the original and of each other; each has its own lease, so nothing of one
outlives its holder; if one cannot be made, those that were are given back.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable
from typing import IO, TYPE_CHECKING

from rock.domain.errors import InvalidRequest
from rock.sdk import jobs
from rock.sdk.lease import HeldLease

if TYPE_CHECKING:
    from rock.sdk.sandbox import Sandbox

_IN_MEMORY_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_SNAPSHOT_S = 60.0
_KEPT = "/tmp"
"""What lies in memory, and so in no image: everything writable, where the root is read-only."""


async def fork(source: Sandbox, held: HeldLease, count: int, make: Callable[[HeldLease], Sandbox]) -> list[Sandbox]:
    """As :meth:`Sandbox.fork`."""
    if count < 1:
        raise InvalidRequest(f"count is {count}, expected at least 1.")
    image = await held.snapshot_for_fork(timeout_s=_SNAPSHOT_S)
    words = await _shell_state(source)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        async for piece in jobs.pack(held, _KEPT, False):
            await asyncio.to_thread(spool.write, piece)
        copies = [make(held.another(image)) for _ in range(count)]
        lock = asyncio.Lock()
        made = await asyncio.gather(*(_fill(copy, spool, lock, words) for copy in copies), return_exceptions=True)
    failed = [error for error in made if isinstance(error, BaseException)]
    if failed:
        await asyncio.gather(*(copy.close() for copy in copies))
        raise failed[0]
    return copies


async def _fill(copy: Sandbox, spool: IO[bytes], lock: asyncio.Lock, words: str) -> None:
    await copy.open()
    await copy.upload_tar(_pieces(spool, lock), _KEPT)
    if words:
        await copy.run(words)


async def _pieces(spool: IO[bytes], lock: asyncio.Lock) -> AsyncGenerator[bytes, None]:
    """Each reader at its own place of the one file."""

    def read(offset: int) -> bytes:
        spool.seek(offset)
        return spool.read(_PIECE_BYTES)

    offset = 0
    while True:
        async with lock:
            data = await asyncio.to_thread(read, offset)
        if not data:
            return
        yield data
        offset += len(data)


async def _shell_state(source: Sandbox) -> str:
    """A line that brings another shell to where the source's stands; empty if that was never used."""
    if not source.shell_opened:
        return ""
    exported = (await source.run("export -p")).output
    directory = (await source.run("pwd")).output.rstrip("\n").replace("'", "'\"'\"'")
    lines = [line for line in exported.splitlines() if " ROCK_SANDBOX=" not in line]
    return "\n".join([*lines, f"cd '{directory}'"])
