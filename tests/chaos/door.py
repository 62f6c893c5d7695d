"""Control's door without HTTP: the SDK's transport calls it as it would call httpx, and is answered as by httpx."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from pydantic import BaseModel
from virtual_loop import VirtualLoop

from rock.control.control import Control
from rock.domain.errors import NotFound, RockError
from rock.wire.models import LeaseRequest, RecoverRequest, RecoveryReport

Handler = Callable[..., Awaitable[BaseModel | None]]


def _routes(control: Control) -> list[tuple[str, str, Handler]]:
    leases = control.leases

    async def heartbeat(lease_id: str, _: bytes) -> BaseModel:
        return leases.heartbeat(lease_id)

    async def recovered(lease_id: str, body: bytes) -> None:
        leases.recovered(lease_id, RecoveryReport.model_validate_json(body))

    return [
        ("POST", r"leases", lambda body: leases.create(LeaseRequest.model_validate_json(body))),
        ("POST", r"leases/([^/]+)/heartbeat", heartbeat),
        ("POST", r"leases/([^/]+)/recover", lambda i, body: leases.rebind(i, RecoverRequest.model_validate_json(body))),
        ("POST", r"leases/([^/]+)/recovered", recovered),
        ("DELETE", r"leases/([^/]+)", lambda i, _: leases.release(i)),
        ("GET", r"sandboxes/([^/]+)", lambda i, _: control.sandbox(i)),
    ]


class Door:
    """Opened and closed with each life of control. Requests run in control's process and go on when nobody waits."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._control: Control | None = None
        self._spawn: Callable[[Any], asyncio.Task[Any]] = loop.create_task

    def open(self, control: Control, spawn: Callable[[Any], asyncio.Task[Any]]) -> None:
        self._control, self._spawn = control, spawn

    def shut(self) -> None:
        self._control = None

    async def _handle(self, control: Control, method: str, path: str, body: bytes) -> httpx.Response:
        try:
            for verb, pattern, handler in _routes(control):
                if verb == method and (found := re.fullmatch(pattern, path)):
                    answer = await handler(*found.groups(), body)
                    content = b"" if answer is None else answer.model_dump_json().encode()
                    return httpx.Response(204 if answer is None else 200, content=content)
            raise NotFound(f"no route {method} {path}")
        except RockError as error:
            return httpx.Response(error.http_status, json=error.to_problem())

    async def ask(self, method: str, path: str, content: bytes | None, timeout: httpx.Timeout) -> httpx.Response:
        await asyncio.sleep(self._loop.moment())
        control = self._control
        if control is None:
            raise httpx.ConnectError("nobody listens")
        task = self._spawn(self._handle(control, method, path, content or b""))
        done, _ = await asyncio.wait({task}, timeout=timeout.read)
        await asyncio.sleep(self._loop.moment())
        if not done:
            raise httpx.ReadTimeout("no answer")
        if self._control is not control or task.cancelled():
            raise httpx.RemoteProtocolError("the server hung up")
        return task.result()


class HttpClient:
    """As much of ``httpx.AsyncClient`` as the SDK's transport uses."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def request(
        self, method: str, path: str, *, content: bytes | None = None, timeout: httpx.Timeout, **_: Any
    ) -> httpx.Response:
        response = await self._door.ask(method, path, content, timeout)
        response.request = httpx.Request(method, f"http://control/v1/{path}")
        return response

    async def aclose(self) -> None:
        pass
