"""The OpenAPI document is complete, its examples are valid, and docs/openapi.json is it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from rock.api.openapi import as_text, document, operations
from rock.api.problems import MEDIA_TYPE
from rock.domain.errors import from_problem

FILE = Path(__file__).parents[3] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return document()


def bodies(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", media, content
    for status, response in operation["responses"].items():
        for media, content in response.get("content", {}).items():
            yield status, media, content


def test_every_operation_is_described_and_has_its_errors(found: dict[str, Any]) -> None:
    for method, path, operation in operations(found):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert "scope" in operation["description"], where
        assert operation["tags"], where
        statuses = set(operation["responses"])
        assert {"401", "403", "422", "429", "500"} <= statuses, where
        assert statuses & {"200", "201", "202", "204"}, where
        for status in statuses:
            content = operation["responses"][status].get("content", {})
            if status >= "4":
                assert list(content) == [MEDIA_TYPE], f"{where} {status}"
            else:
                assert content or status == "204", f"{where} {status}"


def test_every_body_has_an_example_that_its_own_schema_accepts(found: dict[str, Any]) -> None:
    registry: Registry[Any] = Registry().with_resource("doc", DRAFT202012.create_resource(found))
    count = 0
    for method, path, operation in operations(found):
        for which, media, content in bodies(operation):
            where = f"{method} {path} {which}"
            shared = [e["$ref"].rpartition("/")[2] for e in content.get("examples", {}).values()]
            examples = [found["components"]["examples"][e]["value"] for e in shared] or [content["example"]]
            schema = _absolute(content["schema"])
            for example in examples:
                Draft202012Validator(schema, registry=registry).validate(example)
                count += 1
                if media == MEDIA_TYPE:
                    assert from_problem(example).http_status == int(which), where
    assert count > 200


def _absolute(value: Any) -> Any:
    """References into the document, from a schema that is taken out of it."""
    if isinstance(value, dict):
        return {k: f"doc{v}" if k == "$ref" else _absolute(v) for k, v in value.items()}
    return [_absolute(item) for item in value] if isinstance(value, list) else value


def test_the_file_in_the_documentation_is_this_document(found: dict[str, Any]) -> None:
    written = json.loads(FILE.read_text())
    if written["info"]["x-generator"] != found["info"]["x-generator"]:
        pytest.skip("written with another version of FastAPI, which words some things differently")
    assert FILE.read_text() == as_text(found), "python -m rock.api.openapi docs/openapi.json writes it anew"
