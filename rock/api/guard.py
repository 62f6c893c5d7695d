"""Who may pass: the key if one is set, the Host header if none is. Plain ASGI, so that it costs microseconds.

Without a key the API listens on the loopback only (:mod:`rock.api.server` refuses anything else). A web page in the
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

from rock.api.problems import problem_response, request_id
from rock.domain.errors import RockError, Unauthorized

log = logging.getLogger("rock.api.access")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class Guard:
    """``key`` empty: no key is asked for."""

    def __init__(self, app: App, key: str) -> None:
        self._app = app
        self._key_sha256 = hashlib.sha256(key.encode()).digest() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        ident = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(4)
        token = request_id.set(ident)
        began = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", ident.encode())]
            await send(message)

        try:
            refusal = self._refusal(headers)
            if refusal is not None:
                await problem_response(refusal)(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            log.debug(
                "request=%s %s %s status=%d ms=%.1f",
                ident,
                scope["method"],
                scope["path"],
                status,
                (time.perf_counter() - began) * 1000,
            )
            request_id.reset(token)

    def _refusal(self, headers: dict[bytes, bytes]) -> RockError | None:
        if self._key_sha256:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._key_sha256)
            if scheme.lower() == b"bearer" and right:
                return None
            return Unauthorized("the key is missing or wrong", hint="Set ROCK_KEY to the key the platform was given.")
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0] if headers.get(b"host") else ""
        if host in LOOPBACK_HOSTS:
            return None
        return Unauthorized(
            f"the request is for host {host!r}, and without a key only this machine is served",
            hint="Speak to http://127.0.0.1, or start the platform with ROCK_KEY set.",
        )
