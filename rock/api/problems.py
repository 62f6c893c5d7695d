"""Every error leaves the API as ``application/problem+json`` (RFC 9457), whoever raised it."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rock.domain.errors import (
    CapacityExceeded,
    Conflict,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Recovering,
    RockError,
    StorageError,
    Unauthorized,
)

log = logging.getLogger(__name__)

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
"""Of the request being served: in every line that is logged for it, and in the answer's ``X-Request-Id``."""

MEDIA_TYPE = "application/problem+json"
_SHOWN_ERRORS = 3


PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["type", "title", "status", "detail", "hint", "cause", "fault", "request_id"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:rock:capacity-exceeded"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found and what was expected."},
        "hint": {"type": "string", "description": "What to do next."},
        "cause": {"type": "string"},
        "fault": {"type": "string", "enum": ["caller", "agent", "environment", "platform"]},
        "request_id": {"type": "string", "description": "Also in the platform's log, for every line of this request."},
    },
}

_RETRY_AFTER_S: dict[type[RockError], int] = {QuotaExceeded: 1, CapacityExceeded: 2, Recovering: 1, StorageError: 2}
"""What passes by itself, and when it is worth asking again."""


def problem_response(error: RockError) -> Response:
    headers = {}
    if (retry_after_s := _RETRY_AFTER_S.get(type(error))) is not None:
        headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = error.to_problem() | {"request_id": request_id.get()}
    return Response(orjson.dumps(body), error.http_status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    @app.exception_handler(RockError)
    async def on_rock_error(request: Request, error: RockError) -> Response:
        level = logging.INFO if error.http_status < 500 else logging.WARNING
        path = request.url.path
        log.log(level, "%s %s: %s: %s", request.method, path, error.code, error.message)
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        return problem_response(InvalidRequest(_sentence(error.errors())))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 404:
            return problem_response(NotFound(f"nothing is at {path}", hint="/docs lists what there is."))
        if error.status_code == 405:
            return problem_response(Conflict(f"{request.method} is not possible at {path}", hint="See /docs."))
        return problem_response(InvalidRequest(str(error.detail)))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        response = problem_response(
            RockError(
                f"{request.method} {request.url.path} failed inside the platform",
                hint="This is a bug; the platform's log has its traceback.",
                cause=f"{type(error).__name__}: {error}",
            )
        )
        response.headers["X-Request-Id"] = request_id.get()  # answered outside the guard, which names it otherwise
        return response


def _sentence(errors: Sequence[Any]) -> str:
    parts = []
    for error in errors[:_SHOWN_ERRORS]:
        place = ".".join(str(p) for p in error["loc"] if p not in {"body", "query", "path"}) or "the request's body"
        given = f", got {str(error['input'])[:80]!r}" if not isinstance(error.get("input"), dict | list) else ""
        parts.append(f"{place}: {error['msg']}{given}")
    more = len(errors) - _SHOWN_ERRORS
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
