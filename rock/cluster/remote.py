"""A node in another process, as control holds it: :class:`RemoteNode` speaks `rock.wire.node_wire` to its server.

Invariants: every call ends, by its answer, its deadline or the end of the connection; only errors of
``rock.domain.errors`` come out. The connection is made anew for as long as the handle lives, with backoff. What must
happen even if the node is away when it is asked for is owed and done on return: releases, sizes of pools. A claim that
nobody waits for any more is taken back, and what it got all the same is released.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rock.cluster.link import Link
from rock.domain.backoff import Backoff, BackoffPolicy
from rock.domain.errors import Conflict, DeadlineExceeded, PlatformUnavailable, RockError, Unauthorized, from_problem
from rock.wire import node_wire as wire
from rock.wire.handle import HeldLease
from rock.wire.models import (
    Endpoint,
    EventView,
    ExecRequest,
    ExecResult,
    Message,
    NodeView,
    QuarantineView,
    SandboxSpec,
    SandboxStats,
    SandboxView,
)

log = logging.getLogger(__name__)

Locate = Callable[[], Awaitable[wire.Address]]
"""Where the node listens now. Raises RockError while that is not known."""

M = TypeVar("M", bound=Message)

# Looks that go unanswered on a connection before it is given up for broken.
_UNANSWERED = 3
# What a node that was started again says before it has adopted would read as if all its sandboxes were gone.
_NEEDS_ADOPTION = frozenset({"sandboxes", "sandbox", "fence"})

_STRINGS = TypeAdapter(tuple[str, ...])
_SANDBOXES = TypeAdapter(tuple[SandboxView, ...])
_QUARANTINE = TypeAdapter(tuple[QuarantineView, ...])


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each kind of call may take. A node that is merely busy answers a look within a second."""

    view_s: float = 1.0
    look_s: float = 5.0
    adopt_s: float = 60.0
    snapshot_s: float = 12.0
    """Beyond the node's own limit on them."""
    claim_grace_s: float = 5.0
    """Beyond the claim's own ``wait_s``."""
    reconnect_s: float = 1.5
    """A claim waits this long, within its ``wait_s``, for a connection that just broke."""
    backoff: BackoffPolicy = field(default_factory=lambda: BackoffPolicy(0.05, 1.0))


class RemoteNode:
    """Made, then :meth:`open`\\ ed; ``close`` ends the node, ``detach`` only this handle of it."""

    def __init__(
        self, name: str, locate: Locate, token: str, *, timing: Timing | None = None, rng: random.Random | None = None
    ) -> None:
        self._name = name
        self._locate = locate
        self._token = token
        self._timing = timing or Timing()
        self._backoff = Backoff(self._timing.backoff, rng or random.Random())
        self._hello: wire.NodeHello | None = None
        self._link: Link | None = None
        self._adopted = asyncio.Event()
        self._generation = 0
        self._trouble: RockError = PlatformUnavailable(f"node {name} was not reached yet")
        self._view: NodeView | None = None
        self._viewed_at = 0.0
        self._unanswered = 0
        self._owed_releases: dict[str, str] = {}
        self._pools: dict[str, wire.PoolCall] = {}
        self._refusing = False
        self._on_change: list[Callable[[SandboxView], None]] = []
        self._on_event: list[Callable[[EventView], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    # --- the connection

    async def open(self, within_s: float = 30.0) -> None:
        """Raises PlatformUnavailable, Unauthorized or Conflict when it was not reached in time, saying why."""
        self._keeper = asyncio.create_task(self._keep(), name=f"node {self._name}")
        deadline = time.monotonic() + within_s
        while self._link is None:
            if time.monotonic() > deadline or isinstance(self._trouble, Unauthorized | Conflict):
                await self.detach()
                raise self._trouble
            await asyncio.sleep(0.02)

    async def _keep(self) -> None:
        while True:
            try:
                link = await self._connect()
            except (RockError, OSError, TimeoutError) as error:
                self._trouble = error if isinstance(error, RockError) else self._unreachable(str(error))
                await asyncio.sleep(self._backoff.failed(time.monotonic()))
                continue
            self._backoff.succeeded()
            self._generation += 1
            self._link = link
            log.info("node=%s connected (%d)", self._name, self._generation)
            self._chore(self._catch_up())
            await link.closed.wait()
            self._link = None
            self._adopted.clear()
            self._trouble = self._unreachable("the connection ended")
            log.warning("node=%s connection lost", self._name)

    async def _connect(self) -> Link:
        async with asyncio.timeout(wire.HANDSHAKE_TIMEOUT_S):
            address = await self._locate()
            if address.path:
                reader, writer = await asyncio.open_unix_connection(address.path, limit=wire.MAX_LINE_BYTES)
            else:
                reader, writer = await asyncio.open_connection(address.host, address.port, limit=wire.MAX_LINE_BYTES)
            try:
                self._hello = await self._handshake(reader, writer)
            except BaseException:
                writer.close()
                raise
        return Link(self._name, reader, writer, self._pushed)

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> wire.NodeHello:
        nonce = secrets.token_hex(16)
        try:
            greeting = wire.Greeting.model_validate(await wire.read_frame(reader))
            if greeting.protocol != wire.PROTOCOL:
                raise Conflict(
                    f"node {self._name} speaks protocol {greeting.protocol}, this control {wire.PROTOCOL}",
                    hint="Install the same version of rock-roll on every machine.",
                )
            ours = wire.proof(self._token, "control", greeting.nonce, nonce)
            writer.write(wire.line_of(wire.Credentials(nonce=nonce, proof=ours).model_dump()))
            answer = await wire.read_frame(reader)
            if not answer.get("ok"):
                raise from_problem(answer.get("error") or {})
            welcome = wire.Welcome.model_validate(answer.get("value"))
        except ValidationError as error:
            raise PlatformUnavailable(f"what answers for node {self._name} is none", cause=str(error)) from error
        theirs = wire.proof(self._token, "node", greeting.nonce, nonce)
        if not hmac.compare_digest(theirs, welcome.proof):
            raise Unauthorized(f"what answers for node {self._name} does not know its token")
        if welcome.hello.name != self._name:
            raise Conflict(f"node {self._name} was expected, {welcome.hello.name} answers")
        return welcome.hello

    async def _catch_up(self) -> None:
        """Do what was asked for while it was away."""
        try:
            for sandbox_id, reason in list(self._owed_releases.items()):
                await self._ask("release", wire.ReleaseCall(sandbox_id=sandbox_id, reason=reason))
                self._owed_releases.pop(sandbox_id, None)
            for pool in list(self._pools.values()):
                await self._ask("set_pool", pool)
        except RockError as error:
            log.info("node=%s the rest will be told later: %s", self._name, error)

    def _chore(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _unreachable(self, cause: str) -> PlatformUnavailable:
        return PlatformUnavailable(
            f"node {self._name} cannot be reached", hint="`rock node list` shows what is known of it.", cause=cause
        )

    def _pushed(self, kind: str, value: object) -> None:
        if kind == "change":
            view = SandboxView.model_validate(value)
            for callback in self._on_change:
                callback(view)
        elif kind == "event":
            event = EventView.model_validate(value)
            for listener in self._on_event:
                listener(event)

    async def _ask(self, op: str, call: Message | None = None, *, within_s: float | None = None) -> Any:
        if self._link is None:
            trouble = self._trouble
            raise type(trouble)(trouble.message, hint=trouble.hint, cause=trouble.cause)
        if op in _NEEDS_ADOPTION and not self._adopted.is_set():
            raise PlatformUnavailable(f"node {self._name} is being told which leases are its own")
        return await self._link.ask(op, call, self._timing.look_s if within_s is None else within_s)

    # --- the handle

    @property
    def name(self) -> str:
        return self._name

    @property
    def default_image(self) -> str:
        return self._known().default_image

    def _known(self) -> wire.NodeHello:
        if self._hello is None:
            raise self._trouble
        return self._hello

    @property
    def age_s(self) -> float:
        """How old the last view is; infinite before the first."""
        return time.monotonic() - self._viewed_at if self._view else float("inf")

    @property
    def last_view(self) -> NodeView | None:
        return self._view

    async def view(self) -> NodeView:
        """As it is now. What was seen last, and when, is in ``last_view`` and ``age_s``."""
        try:
            value = await self._ask("view", within_s=self._timing.view_s)
        except DeadlineExceeded:
            self._unanswered += 1
            if self._unanswered >= _UNANSWERED and self._link is not None:
                await self._link.close()  # whoever waits on it hears of it now; a connection made anew may get through
            raise
        self._unanswered = 0
        self._view = _parsed(NodeView, value).model_copy(update={"generation": self._generation})
        self._viewed_at = time.monotonic()
        return self._view

    async def adopt(self, held: Sequence[HeldLease]) -> Sequence[str]:
        """Of any of its processes, and again whenever it was away: which of these leases are still good. The rest of
        what it holds is ended."""
        value = await self._ask("adopt", wire.AdoptCall(held=tuple(held)), within_s=self._timing.adopt_s)
        self._adopted.set()
        return _STRINGS.validate_python(value)

    async def claim(
        self, spec: SandboxSpec, *, lease_id: str, token_sha256: str, epoch: int, run_id: str, wait_s: float
    ) -> SandboxView:
        if not self._adopted.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, self._timing.reconnect_s)):
                    await self._adopted.wait()
        if self._refusing:
            raise PlatformUnavailable(f"node {self._name} is shutting down")
        call = wire.ClaimCall(
            spec=spec, lease_id=lease_id, token_sha256=token_sha256, epoch=epoch, run_id=run_id, wait_s=wait_s
        )
        value = await self._claimed(call)
        return _parsed(SandboxView, value)

    async def _claimed(self, call: wire.ClaimCall) -> Any:
        if self._link is None:
            return await self._ask("claim", call)  # raises why
        return await self._link.ask(
            "claim", call, call.wait_s + self._timing.claim_grace_s, too_late=self._release_unwanted
        )

    def _release_unwanted(self, value: object) -> None:
        """The answer to a claim that had been given up."""
        with suppress(RockError):
            view = _parsed(SandboxView, value)
            self._chore(self.release(view.id, reason="the claim had been given up"))

    async def release(self, sandbox_id: str, *, reason: str) -> None:
        """A node that is away is told when it returns."""
        self._owed_releases[sandbox_id] = reason
        with suppress(PlatformUnavailable, DeadlineExceeded):
            await self._ask("release", wire.ReleaseCall(sandbox_id=sandbox_id, reason=reason))
            self._owed_releases.pop(sandbox_id, None)

    def endpoint(self, sandbox_id: str) -> Endpoint:
        known = self._known()
        return Endpoint(
            node=self._name,
            socket_path=f"{known.run_dir}/{sandbox_id}/guest.sock",
            gateway_host=known.gateway_host,
            gateway_port=known.gateway_port,
        )

    async def fence(self, leases: Mapping[str, int]) -> Sequence[str]:
        return _STRINGS.validate_python(await self._ask("fence", wire.FenceCall(leases=dict(leases))))

    async def snapshot(self, lease_id: str, *, epoch: int, name: str) -> int:
        call = wire.SnapshotCall(lease_id=lease_id, epoch=epoch, name=name)
        return int(await self._ask("snapshot", call, within_s=self._timing.snapshot_s))

    async def remove_snapshot(self, name: str) -> None:
        call = wire.SnapshotNameCall(name=name)
        await self._ask("remove_snapshot", call, within_s=self._timing.snapshot_s)

    async def snapshots(self) -> Sequence[str]:
        return _STRINGS.validate_python(await self._ask("snapshots"))

    async def prefetch(self, images: Sequence[str]) -> None:
        await self._ask("prefetch", wire.PrefetchCall(images=tuple(images)))

    async def quarantine(self) -> Sequence[QuarantineView]:
        return _QUARANTINE.validate_python(await self._ask("quarantine"))

    async def clear_quarantine(self, subject: str) -> bool:
        return bool(await self._ask("clear_quarantine", wire.SubjectCall(subject=subject)))

    async def restore_quarantine(self, views: Sequence[QuarantineView]) -> None:
        await self._ask("restore_quarantine", wire.QuarantineCall(views=tuple(views)))

    async def sandboxes(self) -> Sequence[SandboxView]:
        return _SANDBOXES.validate_python(await self._ask("sandboxes"))

    async def sandbox(self, sandbox_id: str) -> SandboxView:
        return _parsed(SandboxView, await self._ask("sandbox", wire.SandboxCall(sandbox_id=sandbox_id)))

    async def exec(self, sandbox_id: str, request: ExecRequest) -> ExecResult:
        call = wire.ExecCall(sandbox_id=sandbox_id, request=request)
        within_s = request.timeout_s + 2 * self._timing.look_s
        return _parsed(ExecResult, await self._ask("exec", call, within_s=within_s))

    async def stats(self, sandbox_id: str) -> SandboxStats:
        return _parsed(SandboxStats, await self._ask("stats", wire.SandboxCall(sandbox_id=sandbox_id)))

    async def logs(self, sandbox_id: str, lines: int) -> Sequence[str]:
        return _STRINGS.validate_python(await self._ask("logs", wire.LogsCall(sandbox_id=sandbox_id, lines=lines)))

    async def set_pool(self, spec: SandboxSpec, target: int, *, minimum: int = 0, maximum: int = 0) -> None:
        """A node that is away is told when it returns."""
        pool = self._pools[spec.digest] = wire.PoolCall(spec=spec, target=target, minimum=minimum, maximum=maximum)
        with suppress(PlatformUnavailable, DeadlineExceeded):
            await self._ask("set_pool", pool)

    def on_change(self, callback: Callable[[SandboxView], None]) -> None:
        self._on_change.append(callback)

    def on_event(self, callback: Callable[[EventView], None]) -> None:
        self._on_event.append(callback)

    def refuse_claims(self) -> None:
        self._refusing = True
        if self._link is not None:
            self._link.give_up("claim", PlatformUnavailable(f"node {self._name} is shutting down"))

    async def close(self, *, keep_sandboxes: bool = False) -> None:
        """Tell the node to end, which ends its process too; not an error when it cannot be reached."""
        self.refuse_claims()
        link = self._link
        if link is not None:
            with suppress(RockError):
                await self._ask("close", wire.CloseCall(keep_sandboxes=keep_sandboxes))
        await self.detach()

    async def detach(self) -> None:
        """Let go of it; it lives on for as long as it bears to be alone."""
        tasks = [task for task in (self._keeper, *self._chores) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.close()
            self._link = None


def _parsed(model: type[M], value: object) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RockError(f"the node's answer is no {model.__name__}", cause=str(error)) from error
