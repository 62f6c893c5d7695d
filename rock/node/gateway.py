"""The data plane's door: TCP on the loopback, a hello line with the lease's proof, then bytes are spliced to the guest.

Invariants: nothing reaches a guest before the lease, its token (compared in constant time) and its epoch are right; a
splice ends with its lease; a peer that dawdles, or sends an endless first line, is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from rock.domain.errors import InvalidRequest, LeaseExpired, RockError, SandboxLost, StaleEpoch, Unauthorized
from rock.node.fleet import Fleet
from rock.node.record import Record
from rock.wire.handle import token_sha256

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
MAX_HELLO_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_NO_TOKEN = "0" * 64


class _Hello(BaseModel):
    model_config = ConfigDict(extra="ignore")
    lease: str
    token: str
    epoch: int = 1


class Gateway:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._server: asyncio.Server | None = None
        self._splices: dict[asyncio.Task[None], Record | None] = {}
        self.host = ""
        self.port = 0

    async def open(self, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._serve, host, 0, limit=MAX_HELLO_BYTES)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut(list(self._splices))

    def sandbox_ended(self, record: Record) -> None:
        """By sandbox, not by lease: its lease may have another sandbox here by now."""
        for task, spliced in self._splices.items():
            if spliced is record:
                task.cancel()

    async def _cut(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._splices[task] = None
        try:
            record = await self._admit(reader)
            self._splices[task] = record
            await self._splice(record, reader, writer)
        except RockError as error:
            writer.write(orjson.dumps({"ok": False, "error": error.to_problem()}) + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            pass  # the peer left, or the lease ended: either way there is nobody to tell
        finally:
            self._splices.pop(task, None)
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _admit(self, reader: asyncio.StreamReader) -> Record:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                line = await reader.readline()
            hello = _Hello.model_validate_json(line)
        except (ValueError, TimeoutError, ValidationError) as error:
            raise InvalidRequest(
                "the gateway expected one line of JSON first",
                hint='Send {"lease": …, "token": …, "epoch": …} and a newline.',
            ) from error
        record = self._fleet.of_lease(hello.lease)
        grant = record.grant if record is not None else None
        # Compared even when there is no such lease, so that the time taken says nothing about which exist.
        right = hmac.compare_digest(token_sha256(hello.token), grant.token_sha256 if grant else _NO_TOKEN)
        if record is None or grant is None:
            raise LeaseExpired(f"lease {hello.lease!r} has ended, or never was", hint="Take a new lease.")
        if not right:
            raise Unauthorized(f"the token is not that of lease {hello.lease}")
        if hello.epoch != grant.epoch:
            raise StaleEpoch(f"lease {hello.lease} is at epoch {grant.epoch}, the caller at {hello.epoch}")
        return record

    async def _splice(self, record: Record, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            guest_reader, guest_writer = await asyncio.open_unix_connection(record.socket_path)
        except OSError as error:
            raise SandboxLost(f"the guest of sandbox {record.id} does not answer", cause=str(error)) from error
        try:
            writer.write(b'{"ok": true}\n')
            pumps = [
                asyncio.ensure_future(_pump(reader, guest_writer)),
                asyncio.ensure_future(_pump(guest_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            with contextlib.suppress(ConnectionError):
                guest_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
