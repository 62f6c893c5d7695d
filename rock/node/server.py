"""A node's door for a control in another process: the node's handle over `rock.wire.node_wire`.

Invariants: nobody is served before it proved the token; an address that other machines reach needs one. One control at
a time: the newest to prove itself takes over, and what the one before had asked for and not got is taken back. On each
connection control first says which leases are good (``adopt``), before anything is claimed: so what was granted to a
connection that broke before the answer is found and ended.
Losing control ends nothing: sandboxes, pools and the gateway go on, and what it missed is told when it returns.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rock.domain.errors import InvalidRequest, PlatformUnavailable, RockError, Unauthorized
from rock.domain.sandbox import SandboxState
from rock.wire import node_wire as wire
from rock.wire.handle import HeldLease, NodeHandle
from rock.wire.models import Message

log = logging.getLogger(__name__)

_HELD = frozenset({SandboxState.LEASED, SandboxState.SUSPECT})
# Said while no control listens; beyond it the oldest is forgotten: control compares everything when it returns.
_BACKLOG_LINES = 4096
# A control that takes nothing any more is cut off; it catches up when it connects again.
_MAX_UNREAD_BYTES = 64 << 20


class NodeServer:
    def __init__(self, node: NodeHandle, *, token: str, run_dir: Path) -> None:
        self._node = node
        self._token = token
        self._run_dir = run_dir
        self._boot = secrets.token_hex(8)
        self._listener: asyncio.Server | None = None
        self._session: _Session | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._backlog: deque[bytes] = deque(maxlen=_BACKLOG_LINES)
        self._adopting = asyncio.Lock()
        self._adopted = False
        self._alone_since = time.monotonic()
        self.close_requested: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Control wants the node closed; the result says whether its sandboxes are to stay."""
        node.on_change(lambda view: self._push("change", view))
        node.on_event(lambda event: self._push("event", event))
        self._operations = self._table()

    async def listen(self, address: wire.Address) -> wire.Address:
        """Raises InvalidRequest for an address that needs a token when there is none, or that cannot be had."""
        if not address.private and not self._token:
            raise InvalidRequest(
                f"other machines can reach {address}: a node there needs a token", hint="Set `token`, or use loopback."
            )
        limit = wire.MAX_LINE_BYTES
        try:
            if address.path:
                await asyncio.to_thread(Path(address.path).unlink, missing_ok=True)
                self._listener = await asyncio.start_unix_server(self._serve, address.path, limit=limit)
                await asyncio.to_thread(os.chmod, address.path, 0o600)
                return address
            self._listener = await asyncio.start_server(self._serve, address.host, address.port, limit=limit)
        except OSError as error:
            raise InvalidRequest(f"the node cannot listen at {address}: {error}", cause=str(error)) from error
        host, port = self._listener.sockets[0].getsockname()[:2]
        return wire.Address(host=host, port=port)

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        tasks = list(self._handshakes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.end()

    @property
    def alone_s(self) -> float:
        """How long no control has been there."""
        return 0.0 if self._session is not None else time.monotonic() - self._alone_since

    # --- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handshakes.add(task)
        try:
            async with asyncio.timeout(wire.HANDSHAKE_TIMEOUT_S):
                await self._handshake(reader, writer)
        except RockError as error:
            log.warning("node=%s refused a control: %s", self._node.name, error)
            writer.write(wire.error_line(error))
            writer.close()
            return
        except (TimeoutError, asyncio.CancelledError, ConnectionError):
            writer.close()
            return
        finally:
            self._handshakes.discard(task)
        await self._run(_Session(reader, writer, self._operations))

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = secrets.token_hex(16)
        writer.write(wire.line_of(wire.Greeting(protocol=wire.PROTOCOL, nonce=nonce).model_dump()))
        try:
            answer = wire.Credentials.model_validate(await wire.read_frame(reader))
        except ValidationError as error:
            raise Unauthorized("the peer sent no credentials") from error
        right = wire.proof(self._token, "control", nonce, answer.nonce)
        if not hmac.compare_digest(right.encode(), answer.proof.encode()):
            raise Unauthorized("the peer does not know the node's token")
        ours = wire.proof(self._token, "node", nonce, answer.nonce)
        welcome = wire.Welcome(proof=ours, hello=self._hello())
        writer.write(wire.line_of({"id": None, "ok": True, "value": welcome}))

    def _hello(self) -> wire.NodeHello:
        door = self._node.endpoint("")
        return wire.NodeHello(
            name=self._node.name,
            boot=self._boot,
            pid=os.getpid(),
            default_image=self._node.default_image,
            run_dir=str(self._run_dir),
            gateway_host=door.gateway_host,
            gateway_port=door.gateway_port,
        )

    async def _run(self, session: _Session) -> None:
        before, self._session = self._session, session
        if before is not None:
            log.warning("node=%s another control takes over", self._node.name)
            await before.end()
        while self._backlog:
            session.send(self._backlog.popleft())
        try:
            await session.serve()
        finally:
            if self._session is session:
                self._session, self._alone_since = None, time.monotonic()
                log.info("node=%s control went away", self._node.name)

    def _push(self, kind: str, value: object) -> None:
        line = wire.line_of({"push": kind, "value": value})
        if self._session is None or not self._session.send(line):
            self._backlog.append(line)

    # --- what can be asked

    def _table(self) -> dict[str, tuple[type[Message], Callable[[Any], Awaitable[object]]]]:
        node, nothing = self._node, wire.NoArguments
        return {
            "view": (nothing, lambda _: node.view()),
            "adopt": (wire.AdoptCall, lambda call: self._adopt(call.held)),
            "claim": (
                wire.ClaimCall,
                lambda call: node.claim(
                    call.spec,
                    lease_id=call.lease_id,
                    token_sha256=call.token_sha256,
                    epoch=call.epoch,
                    run_id=call.run_id,
                    wait_s=call.wait_s,
                ),
            ),
            "release": (wire.ReleaseCall, lambda call: node.release(call.sandbox_id, reason=call.reason)),
            "fence": (wire.FenceCall, lambda call: node.fence(call.leases)),
            "snapshot": (
                wire.SnapshotCall,
                lambda call: node.snapshot(call.lease_id, epoch=call.epoch, name=call.name),
            ),
            "remove_snapshot": (wire.SnapshotNameCall, lambda call: node.remove_snapshot(call.name)),
            "snapshots": (nothing, lambda _: node.snapshots()),
            "prefetch": (wire.PrefetchCall, lambda call: node.prefetch(call.images)),
            "quarantine": (nothing, lambda _: node.quarantine()),
            "clear_quarantine": (wire.SubjectCall, lambda call: node.clear_quarantine(call.subject)),
            "restore_quarantine": (wire.QuarantineCall, lambda call: node.restore_quarantine(call.views)),
            "sandboxes": (nothing, lambda _: node.sandboxes()),
            "sandbox": (wire.SandboxCall, lambda call: node.sandbox(call.sandbox_id)),
            "stats": (wire.SandboxCall, lambda call: node.stats(call.sandbox_id)),
            "exec": (wire.ExecCall, lambda call: node.exec(call.sandbox_id, call.request)),
            "logs": (wire.LogsCall, lambda call: node.logs(call.sandbox_id, call.lines)),
            "set_pool": (
                wire.PoolCall,
                lambda call: node.set_pool(call.spec, call.target, minimum=call.minimum, maximum=call.maximum),
            ),
            "close": (wire.CloseCall, self._close_wanted),
        }

    async def _adopt(self, held: Sequence[HeldLease]) -> Sequence[str]:
        """The first time the node looks for sandboxes that an earlier process left; later it knows what it holds."""
        async with self._adopting:
            if not self._adopted:
                good = await self._node.adopt(held)
                self._adopted = True
                return good
            await self._node.fence({lease.lease_id: lease.epoch for lease in held})
            ours = {view.id: view.lease_id for view in await self._node.sandboxes() if view.state in _HELD}
            good = [lease.lease_id for lease in held if ours.get(lease.sandbox_id) == lease.lease_id]
            unknown = set(ours.values()) - set(good)
            for sandbox_id in [sandbox_id for sandbox_id, lease_id in ours.items() if lease_id in unknown]:
                await self._node.release(sandbox_id, reason="its lease is bound to another sandbox")
            return good

    async def _close_wanted(self, call: wire.CloseCall) -> None:
        if not self.close_requested.done():
            self.close_requested.set_result(call.keep_sandboxes)


class _Session:
    """One control's connection, after the handshake."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        operations: dict[str, tuple[type[Message], Callable[[Any], Awaitable[object]]]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._operations = operations
        self._adopted = False
        self._claims: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, line: bytes) -> bool:
        """False when the peer is gone, or takes nothing any more."""
        if self._writer.is_closing():
            return False
        if self._writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._writer.transport.abort()
            return False
        self._writer.write(line)
        return True

    async def serve(self) -> None:
        try:
            while True:
                self._on_frame(await wire.read_frame(self._reader))
        except PlatformUnavailable as error:
            log.debug("a control's connection ended: %s", error)
        finally:
            await self.end()

    async def end(self) -> None:
        """Take back the claims that were not answered; what else was asked for is finished."""
        self._writer.close()
        claims = list(self._claims.values())
        for claim in claims:
            claim.cancel()
        await asyncio.gather(*claims, return_exceptions=True)

    def _on_frame(self, frame: dict[str, Any]) -> None:
        if "cancel" in frame:
            if (claim := self._claims.get(frame["cancel"])) is not None:
                claim.cancel()
            return
        call_id, op = frame.get("id"), frame.get("op")
        if not isinstance(call_id, int) or not isinstance(op, str):
            raise PlatformUnavailable("a frame without id and op")
        task = asyncio.ensure_future(self._answer(call_id, op, frame.get("args") or {}))
        if op == "claim":
            self._claims[call_id] = task
            task.add_done_callback(lambda _: self._claims.pop(call_id, None))
        else:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, call_id: int, op: str, arguments: object) -> None:
        try:
            model, operation = self._operations[op]
            if op == "claim" and not self._adopted:
                raise PlatformUnavailable("the node was not told yet which leases are good")
            value = await operation(model.model_validate(arguments))
            self._adopted |= op == "adopt"
            line = wire.line_of({"id": call_id, "ok": True, "value": value})
        except KeyError:
            line = wire.error_line(InvalidRequest(f"a node has no operation {op!r}"), call_id)
        except ValidationError as error:
            line = wire.error_line(InvalidRequest(f"{op}: {error.error_count()} arguments are wrong: {error}"), call_id)
        except RockError as error:
            line = wire.error_line(error, call_id)
        except Exception as error:  # the other side must hear of a bug here, too, instead of waiting
            log.exception("%s failed", op)
            line = wire.error_line(RockError(f"{op} failed: {type(error).__name__}: {error}"), call_id)
        self.send(line)
