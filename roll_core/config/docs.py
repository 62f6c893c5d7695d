"""Makes ``docs/recipes.md`` from the models: ``python -m roll_core.config.docs > docs/recipes.md``. A test compares."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from roll_core.config.models import Recipe

_INTRO = """\
# Recipes

A recipe is a YAML file with the sections below. `rock train RECIPE [section.field=value …]` trains it, `--dry-run`
prints it with every default written out. Unknown keys are refused. This page is made from
`roll_core/config/` by
`python -m roll_core.config.docs > docs/recipes.md`.

`name` (text, required): name of the run, for people.
"""

_TYPE_NAMES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true/false",
    dict: "mapping",
    tuple: "list",
    types.NoneType: "null",
}


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:  # only inside a union: pydantic has taken a field's own bounds off
        return _type(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{v}`" for v in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(_type(a) for a in typing.get_args(annotation))
    return _TYPE_NAMES[origin or annotation]


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value in ("", (), {}):
        return "empty"
    if value is None:
        return "`null`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _section(name: str, model: type[BaseModel]) -> str:
    rows = [
        f"## {name}",
        "",
        (model.__doc__ or "").strip(),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def render() -> str:
    sections = [
        _section(name, field.annotation)
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]
    return _INTRO + "\n" + "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.write(render())
