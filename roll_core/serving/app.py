"""The endpoint's routes. ``/v1/chat/completions`` and ``/v1/models`` as OpenAI has them; ``/v1/episode`` is where the
program of an episode finds its environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rock.domain.errors import Fault, RockError
from roll_core.rollout.prompting import Tokenizer
from roll_core.serving.doors import Door, Seat, Stage
from roll_core.serving.replies import completion, event, events
from roll_core.serving.session import Ready
from roll_core.serving.wire import ApiError, parse_chat

_MAX_BODY_BYTES = 32 << 20
T = TypeVar("T")


def make_app(door: Door, tokenizer: Tokenizer, model: str) -> Starlette:
    """``model``: the name under which the policy is known."""
    routes = _Routes(door, tokenizer, model)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/v1/episode", routes.episode, methods=["GET"]),
            Route("/v1/episode/step", routes.step, methods=["POST"]),
        ],
        exception_handlers={ApiError: _refused, RockError: _of_the_platform, HTTPException: _no_such_route},
    )


class _Routes:
    def __init__(self, door: Door, tokenizer: Tokenizer, model: str) -> None:
        self._door = door
        self._tokenizer = tokenizer
        self._model = model

    async def chat(self, request: Request) -> Response:
        self._door.check(request.headers)
        asked = parse_chat(await _body(request))
        self._known(asked.model)
        seat = self._door.seat(request.headers, asked.user)
        ready = seat.session.ready(asked)
        if asked.stream:
            return StreamingResponse(self._streamed(seat, ready), media_type="text/event-stream")
        reply = await _while_connected(request, seat.session.answer(ready))
        return JSONResponse(completion(reply, self._model, self._tokenizer))

    async def _streamed(self, seat: Seat, ready: Ready) -> AsyncIterator[bytes]:
        try:
            reply = await seat.session.answer(ready)
        except ApiError as error:  # the status has been sent already
            yield event(error.body())
            return
        for chunk in events(reply, self._model, self._tokenizer):
            yield chunk

    async def models(self, request: Request) -> Response:
        self._door.check(request.headers)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._door.check(request.headers)
        self._known(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "rock-roll"}

    def _known(self, name: str) -> None:
        if name and name != self._model:
            raise ApiError(
                404, f"There is no model {name!r}; there is {self._model!r}.", code="model_not_found", param="model"
            )

    async def episode(self, request: Request) -> Response:
        return _json(self._stage(request).view())

    async def step(self, request: Request) -> Response:
        stage = self._stage(request)
        try:
            action = orjson.loads(await _body(request))["action"]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(400, 'The body must be {"action": …}.', code="invalid_value", param="action") from error
        return _json(await stage.step(action))

    def _stage(self, request: Request) -> Stage:
        stage = self._door.seat(request.headers, "").stage
        if stage is None:
            raise ApiError(404, "This session has no environment.", code="no_environment")
        return stage


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise ApiError(413, f"The body exceeds {_MAX_BODY_BYTES} bytes.", code="too_large")
    return bytes(body)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            raise ApiError(499, "The client has gone.", code="client_gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status)


async def _of_the_platform(_: Request, error: Exception) -> Response:
    assert isinstance(error, RockError)
    status = 400 if error.fault in (Fault.AGENT, Fault.CALLER) else 502
    body = ApiError(status, str(error), code=type(error).__name__, kind="environment_error").body()
    return JSONResponse(body, status_code=status)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}. There are /v1/chat/completions and /v1/models."
    return JSONResponse(ApiError(error.status_code, said, code="not_found").body(), status_code=error.status_code)
