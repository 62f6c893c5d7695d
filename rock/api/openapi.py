"""The OpenAPI document: what FastAPI derives, completed with scopes, every error a route may answer with, and examples.

``python -m rock.api.openapi docs/openapi.json`` writes it; a test keeps that file in step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi
import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from rock.api.examples import EVENT_STREAM, EXAMPLES, METRICS
from rock.api.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from rock.api.rules import rule_of
from rock.domain.errors import BY_CODE, Forbidden, InvalidRequest, QuotaExceeded, RockError, Unauthorized

_JSON = "application/json"
_PROBLEM_REF = {"$ref": "#/components/schemas/Problem"}
_ANYWHERE: tuple[type[RockError], ...] = (Unauthorized, Forbidden, InvalidRequest, QuotaExceeded, RockError)
_METHODS = frozenset({"get", "post", "put", "patch", "delete"})

Document = dict[str, Any]


def install(app: FastAPI) -> None:
    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = completed(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    summary=app.summary,
                    description=app.description,
                    routes=app.routes,
                )
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def completed(document: Document) -> Document:
    schemas = document["components"]["schemas"]
    schemas["Problem"] = PROBLEM_SCHEMA
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    document["components"]["examples"] = {code: _problem_example(error) for code, error in BY_CODE.items()}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["info"]["x-generator"] = f"fastapi {fastapi.__version__}"
    for method, path, operation in operations(document):
        _complete(operation, method, path)
    return document


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield method.upper(), path, operation


def _complete(operation: Document, method: str, path: str) -> None:
    rule = rule_of(method, path)
    said = operation.get("description", "").strip() or f"{operation['summary']}."
    operation["description"] = f"{said}\n\nWhere keys are asked for, it needs one of scope `{rule.scope}`."
    operation["security"] = [{}, {"key": []}]
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own, of another shape
    for response in responses.values():
        _exemplify(response)
    _exemplify(operation.get("requestBody", {}))
    for status, errors in sorted(_by_status((*_ANYWHERE, *rule.errors)).items()):
        responses[str(status)] = _problem_response(errors)


def _by_status(errors: tuple[type[RockError], ...]) -> dict[int, list[type[RockError]]]:
    found: dict[int, list[type[RockError]]] = {}
    for error in dict.fromkeys(errors):
        found.setdefault(error.http_status, []).append(error)
    return found


def _problem_response(errors: list[type[RockError]]) -> Document:
    examples = {error.code: {"$ref": f"#/components/examples/{error.code}"} for error in errors}
    content = {MEDIA_TYPE: {"schema": _PROBLEM_REF, "examples": examples}}
    return {"description": " ".join(f"`{error.code}`: {_meaning(error)}" for error in errors), "content": content}


def _meaning(error: type[RockError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0]


def _problem_example(error: type[RockError]) -> Document:
    return {"value": error(_meaning(error), hint="What to do next.").to_problem() | {"request_id": "9f1c2d3e"}}


def _exemplify(body: Document) -> None:
    """Give a request's or a response's contents their example."""
    for media, one in body.get("content", {}).items():
        example = EVENT_STREAM if media == "text/event-stream" else _example(one.get("schema", {}))
        if media == "text/plain":
            example = METRICS
        if example is not None:
            one["example"] = example


def _example(schema: Document) -> object:
    if "$ref" in schema:
        return EXAMPLES.get(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        one = _example(schema["items"])
        return None if one is None else [one]
    for choice in schema.get("anyOf", ()):
        if (found := _example(choice)) is not None:
            return found
    return None


def document() -> Document:
    """Without a platform: nothing is opened."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from rock.api.app import create_app
    from rock.control.control import Control, ControlConfig
    from rock.runtimes.bundles import EnvCatalog
    from rock.store.database import Database

    database = Database(create_async_engine("sqlite+aiosqlite://"), "nowhere")
    control = Control(ControlConfig("docs"), database, [], EnvCatalog(Path("nowhere")))
    return create_app(control, key="").openapi()


def as_text(found: Document) -> str:
    return orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n"


if __name__ == "__main__":
    text = as_text(document())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)
