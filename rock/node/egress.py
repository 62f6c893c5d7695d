"""The way out for sandboxes that may speak to some hosts: an HTTP proxy for each, on a socket in its own directory.

It takes ``CONNECT host:port`` and requests with an absolute ``http://`` address, one request a connection. Invariants:
nobody is spoken to whom the sandbox's list does not name (:mod:`rock.domain.egress`); a name is resolved here, and what
is connected to is the very address that was judged; a proxy ends, with every connection through it, when its sandbox
does; what a sandbox can make us hold is bounded, and what it makes us wait for takes none of the node's own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rock.domain.egress import Egress, address_of, canonical
from rock.domain.sandbox import LIVING
from rock.node.fleet import Fleet
from rock.runtimes.shared import PROXY
from rock.wire.models import SandboxView

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[list[str]]]

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 32 << 10
HEAD_S = 10.0
CONNECT_S = 10.0
IDLE_S = 300.0
"""A connection through which nothing has gone for so long is cut."""
_CHUNK_BYTES = 1 << 16
# Different refusals that are told of each sandbox; all are counted.
_TOLD = 32
_RESOLVERS = 4
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,255}")
# What concerns one connection only, or is ours to say.
_HOP = frozenset({b"host", b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"upgrade"})


@dataclass(slots=True)
class Counts:
    bytes: int = 0
    """Both ways."""
    refused: int = 0


class _Refused(Exception):
    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True, eq=False)
class _Door:
    """One sandbox's proxy."""

    sandbox_id: str
    run_id: str
    egress: Egress
    counts: Counts = field(default_factory=Counts)
    told: set[str] = field(default_factory=set)
    server: asyncio.Server | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for task in self.tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class _Request:
    host: str
    port: int
    first: bytes
    """What the far side is sent before all else."""
    tunnel: bool


class EgressProxies:
    """Opens one when it hears of a sandbox that may have it, closes it when it hears of its end."""

    def __init__(self, fleet: Fleet, run_dir: Path, resolve: Resolve | None = None) -> None:
        self._fleet = fleet
        self._run_dir = run_dir
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="egress-dns")
        self.resolve: Resolve = resolve or self._look_up
        self._doors: dict[str, _Door] = {}
        self._opening: set[asyncio.Task[None]] = set()
        fleet.on_change(self._changed)

    def counts(self, sandbox_id: str) -> Counts:
        door = self._doors.get(sandbox_id)
        return door.counts if door is not None else Counts()

    async def close(self) -> None:
        doors, self._doors = list(self._doors.values()), {}
        tasks = [*self._opening, *(task for door in doors for task in door.tasks)]
        for door in doors:
            door.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    # --- with the sandbox

    def _changed(self, view: SandboxView) -> None:
        door = self._doors.get(view.id)
        if view.state not in LIVING:
            if door is not None:
                del self._doors[view.id]
                door.close()
                counts = door.counts
                log.info("sandbox=%s egress_bytes=%d egress_refused=%d", view.id, counts.bytes, counts.refused)
        elif door is not None:
            door.run_id = view.run_id
        elif view.spec.egress:
            door = self._doors[view.id] = _Door(view.id, view.run_id, Egress.of(view.spec.egress))
            task = asyncio.get_running_loop().create_task(self._open(door))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, door: _Door) -> None:
        """Bound under a name that no sandbox sees, and moved: nothing that lies in its directory is followed."""
        draft = self._run_dir / f"{door.sandbox_id}.sock"
        try:
            server = await asyncio.start_unix_server(
                lambda reader, writer: self._serve(door, reader, writer), draft, limit=MAX_HEAD_BYTES
            )
            door.server = server
            await asyncio.to_thread(_hand_over, draft, self._run_dir / door.sandbox_id)
        except OSError as error:
            log.warning("sandbox=%s has no way out: %s", door.sandbox_id, error)
            self._fleet.emit("sandbox.egress_failed", door.sandbox_id, str(error), door.run_id)
        if self._doors.get(door.sandbox_id) is not door:
            door.close()  # its sandbox has ended meanwhile

    # --- one connection

    async def _serve(self, door: _Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        door.tasks.add(task)
        try:
            if len(door.tasks) > MAX_CONNECTIONS:
                raise _Refused("503 Too Many Connections", f"{MAX_CONNECTIONS} are open already")
            request = await _read_request(reader)
            far_reader, far_writer = await self._connect(door, request)
            try:
                if request.tunnel:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                far_writer.write(request.first)
                door.counts.bytes += len(request.first)
                await _splice(door.counts, (reader, writer), (far_reader, far_writer))
            finally:
                far_writer.close()
        except _Refused as error:
            body = f"{error}\n".encode()
            head = f"HTTP/1.1 {error.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # a peer left, nothing moved for long, or the sandbox ended: nobody is left to be told
        finally:
            door.tasks.discard(task)
            writer.close()

    async def _connect(self, door: _Door, request: _Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = request.host, request.port
        if why := door.egress.refusal_of_name(host, port):
            raise self._refusal(door, request, why)
        try:
            async with asyncio.timeout(CONNECT_S):
                found = [host] if address_of(host) is not None else await self.resolve(host, port)
        except (OSError, TimeoutError) as error:
            raise _Refused("502 Bad Gateway", f"{host} cannot be resolved: {error or 'no answer in time'}") from error
        addresses, why = door.egress.allowed_addresses(host, port, found)
        if why:
            raise self._refusal(door, request, why)
        last: Exception = OSError("it has no address")
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_S):
                    return await asyncio.open_connection(address, port, limit=_CHUNK_BYTES)
            except (OSError, TimeoutError) as error:
                last = error
        raise _Refused("502 Bad Gateway", f"{host}:{port} does not answer: {last or 'no answer in time'}") from last

    def _refusal(self, door: _Door, request: _Request, why: str) -> _Refused:
        """Told once for each host and port; a sandbox that tries for ever fills no log."""
        door.counts.refused += 1
        text = f"{request.host}:{request.port} may not be reached from this sandbox: {why}"
        what = f"{request.host}:{request.port}"
        if what not in door.told and len(door.told) < _TOLD:
            door.told.add(what)
            log.info("sandbox=%s egress refused: %s: %s", door.sandbox_id, what, why)
            self._fleet.emit("sandbox.egress_refused", door.sandbox_id, text, door.run_id)
        return _Refused("403 Forbidden", f"{text}. `egress` in env.toml, or --egress, makes the list.")

    async def _look_up(self, host: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _hand_over(draft: Path, shared_dir: Path) -> None:
    if os.geteuid() == 0:
        draft.chmod(0o666)  # the sandbox's user is another; nobody but it passes through the directory
    shared_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft.rename(shared_dir / PROXY)


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    try:
        async with asyncio.timeout(HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise _Refused("431 Request Header Fields Too Large", f"more than {MAX_HEAD_BYTES} bytes of them") from error
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("it left before it had asked") from error
    line, *fields = head[:-4].split(b"\r\n")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused("400 Bad Request", f"{line[:80]!r} is no request to a proxy")
    method, target, version = words
    tunnel = method == "CONNECT"
    try:
        parts = urlsplit(f"//{target}" if tunnel else target)
        host, port = canonical(parts.hostname or ""), parts.port or (443 if tunnel else 80)
    except ValueError:
        host = ""
    if not _HOST.fullmatch(host) or (not tunnel and parts.scheme != "http"):
        raise _Refused(
            "400 Bad Request", f"{target[:80]!r}: expected 'CONNECT host:port', or an address that begins with http://"
        )
    if tunnel:
        return _Request(host, port, b"", True)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    kept = [one for one in fields if one.partition(b":")[0].strip().lower() not in _HOP]
    own = [f"{method} {path if path.startswith('/') else '/' + path} {version}".encode("latin-1")]
    own += [b"Host: " + parts.netloc.rpartition("@")[2].encode("latin-1"), b"Connection: close"]
    return _Request(host, port, b"\r\n".join([*own, *kept]) + b"\r\n\r\n", False)


async def _splice(
    counts: Counts,
    near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Until both ways have ended. Raises TimeoutError when nothing moves for IDLE_S."""
    loop = asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                counts.bytes += len(data)
                idle.reschedule(loop.time() + IDLE_S)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async with asyncio.timeout(IDLE_S) as idle:
        await asyncio.gather(pump(near[0], far[1]), pump(far[0], near[1]))
