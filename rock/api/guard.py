"""Who asks, and whether they may pass: by key where there are keys, by the Host header where there are none.

Plain ASGI, so that it costs microseconds. What a key is good for is decided by the route (:mod:`rock.api.rules`).

Without any key the API listens on the loopback only (:mod:`rock.api.server` refuses anything else). A web page in the
user's browser could still reach it by pointing a name of its own at 127.0.0.1, so then the Host header must name the
loopback.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rock.api.metrics import RequestMeasures
from rock.api.problems import problem_response, request_id
from rock.api.rules import CALLER
from rock.control.keys import OWNER, Caller, KeyRing
from rock.domain.errors import RockError, Unauthorized

log = logging.getLogger("rock.api.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STREAM = "/events/stream"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class Guard:
    """``key``: the owner's, with which the platform was started; ``keys``: those made since. Neither: no key is asked
    for."""

    def __init__(self, app: App, key: str, keys: KeyRing, measures: RequestMeasures) -> None:
        self._app = app
        self._key_sha256 = hashlib.sha256(key.encode()).digest() if key else b""
        self._keys = keys
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        ident = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(4)
        request_id.set(ident)  # never taken back: every request is served by a task, and in a context, of its own
        began = time.perf_counter()
        status = 500  # what it is if the application raises before it answers
        self._measures.under_way += 1

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", ident.encode())]
            await send(message)

        try:
            try:
                caller = self._caller(headers)
                self._keys.enter(caller)
            except RockError as refusal:
                await problem_response(refusal)(scope, receive, send_with_id)
                return
            scope[CALLER] = caller
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                self._keys.leave(caller)
        finally:
            took_s = time.perf_counter() - began
            self._measures.under_way -= 1
            route = scope.get("route")
            path = getattr(route, "path", "")
            if not path.endswith(STREAM):  # lasts as long as somebody follows
                self._measures.observe(scope["method"], path, status, took_s)
            log.debug("%s %s status=%d ms=%.1f", scope["method"], scope["path"], status, took_s * 1000)

    def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Raises Unauthorized."""
        if self._key_sha256 or len(self._keys):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            found = self._holder(given.strip()) if scheme.lower() == b"bearer" else None
            if found is None:
                raise Unauthorized(
                    "the key is missing or wrong",
                    hint="Set ROCK_KEY to the key the platform was given, or to one of `rock key create`.",
                )
            return found
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0] if headers.get(b"host") else ""
        if host in LOOPBACK_HOSTS:
            return OWNER
        raise Unauthorized(
            f"the request is for host {host!r}, and without a key only this machine is served",
            hint="Speak to http://127.0.0.1, or start the platform with ROCK_KEY set.",
        )

    def _holder(self, secret: bytes) -> Caller | None:
        if self._key_sha256 and hmac.compare_digest(hashlib.sha256(secret).digest(), self._key_sha256):
            return OWNER
        return self._keys.identify(secret)
