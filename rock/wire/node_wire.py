"""The wire between control and a node in another process: JSON lines over TCP or a unix socket.

First both sides prove that they know the shared token, without sending it: the node greets with a nonce, control
answers with one of its own and an HMAC over both, the node answers with its proof and says who it is
(:class:`NodeHello`). Then control sends ``{"id", "op", "args"}`` and gets ``{"id", "ok", "value" | "error"}``;
``{"cancel": id}`` takes a request back; the node pushes ``{"push": "change" | "event", "value"}`` unasked.

What follows the handshake is neither signed nor encrypted: between machines use a network you trust, as Ray's own
protocol asks for, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic_core import to_jsonable_python

from rock.domain.errors import InvalidRequest, PlatformUnavailable, RockError
from rock.wire.handle import HeldLease
from rock.wire.models import ExecRequest, Message, QuarantineView, SandboxSpec

PROTOCOL = 1
# Views of a few thousand sandboxes with their evidence fit.
MAX_LINE_BYTES = 64 << 20
MAX_HANDSHAKE_BYTES = 4096
HANDSHAKE_TIMEOUT_S = 5.0


# --- addresses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """``unix:/path`` or ``host:port``."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        if text.startswith("unix:"):
            return cls(path=text.removeprefix("unix:"))
        host, found, port = text.rpartition(":")
        if not found or not host or not port.isdigit() or int(port) > 65_535:
            raise InvalidRequest(f"{text!r} is no address", hint="Give unix:/path or host:port.")
        return cls(host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{self.port}"

    @property
    def private(self) -> bool:
        """Whether only this machine's processes reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


# --- the handshake ----------------------------------------------------------------------------------------------------


class Greeting(Message):
    protocol: int
    nonce: str


class Credentials(Message):
    nonce: str
    proof: str


class NodeHello(Message):
    """Who the node is, for as long as this process of it lives."""

    name: str
    boot: str
    """Random, new with every process: control sees by it that the node was restarted."""
    pid: int
    default_image: str
    run_dir: str
    """Where its sandboxes' sockets are, for clients on the same machine."""
    gateway_host: str
    gateway_port: int


class Welcome(Message):
    proof: str
    hello: NodeHello


def proof(token: str, side: Literal["control", "node"], node_nonce: str, control_nonce: str) -> str:
    text = f"rock-node-{PROTOCOL}:{side}:{node_nonce}:{control_nonce}"
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


# --- requests ---------------------------------------------------------------------------------------------------------


class NoArguments(Message):
    pass


class AdoptCall(Message):
    held: tuple[HeldLease, ...]


class ClaimCall(Message):
    spec: SandboxSpec
    lease_id: str
    token_sha256: str
    epoch: int
    run_id: str
    wait_s: float


class ReleaseCall(Message):
    sandbox_id: str
    reason: str


class FenceCall(Message):
    leases: dict[str, int]


class SnapshotCall(Message):
    lease_id: str
    epoch: int
    name: str


class SnapshotNameCall(Message):
    name: str


class PrefetchCall(Message):
    images: tuple[str, ...]


class SubjectCall(Message):
    subject: str


class SandboxCall(Message):
    sandbox_id: str


class ExecCall(Message):
    sandbox_id: str
    request: ExecRequest


class LogsCall(Message):
    sandbox_id: str
    lines: int


class QuarantineCall(Message):
    views: tuple[QuarantineView, ...]


class PoolCall(Message):
    spec: SandboxSpec
    target: int
    minimum: int = 0
    maximum: int = 0


class CloseCall(Message):
    keep_sandboxes: bool


# --- lines ------------------------------------------------------------------------------------------------------------


def line_of(frame: Mapping[str, object]) -> bytes:
    return orjson.dumps(to_jsonable_python(frame), option=orjson.OPT_APPEND_NEWLINE)


def error_line(error: RockError, call_id: int | None = None) -> bytes:
    return line_of({"id": call_id, "ok": False, "error": error.to_problem()})


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame. Raises PlatformUnavailable when the peer is gone or talks nonsense."""
    try:
        line = await reader.readline()
        frame = orjson.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError) as error:  # a line beyond the limit and one that is no JSON are ValueErrors
        raise PlatformUnavailable("the connection broke", cause=str(error)) from error
    if not isinstance(frame, dict):
        raise PlatformUnavailable("the connection ended" if not line else f"no frame: {line[:80]!r}")
    return frame
