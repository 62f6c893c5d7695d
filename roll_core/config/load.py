"""From a YAML file and ``key=value`` overrides to a :class:`Recipe`, or one paragraph that says what is wrong where."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from roll_core.config.models import Recipe
from roll_core.errors import RecipeError

RECIPE_FOLDERS = (Path(__file__).resolve().parents[2] / "recipes",)
"""Where recipes are looked for by their bare names."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-3`` as text and ``on`` as a truth value; people mean the number and the word."""


_Loader.yaml_implicit_resolvers = {
    key: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+.0123456789"),
)  # fmt: skip


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """``recipe``: a file, or the name of a shipped one. ``overrides``: ``section.field=value``, the value as in YAML.

    Raises: RecipeError, naming the file and line, or the override.
    """
    path = find_recipe(recipe)
    data, lines = _read(path)
    where = {key: f"{path}:{line}" for key, line in lines.items()}
    for override in overrides:
        key, value = _split(override)
        _set(data, key, value, override)
        where[key] = f"override {override!r}"
    return _validate(data, where, str(path))


def recipe_from_data(data: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from plain data, e.g. what a run's directory kept. Raises RecipeError."""
    return _validate(dict(data), {}, source)


def find_recipe(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    candidates = [folder / f"{recipe}.yaml" for folder in RECIPE_FOLDERS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(p.stem for folder in RECIPE_FOLDERS for p in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(recipe), known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"There is no recipe file {str(recipe)!r}.{meant} Shipped recipes: {', '.join(known) or 'none'}.")


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line} is not YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must be a mapping of sections, not {type(data).__name__}.")
    return data, dict(_lines(node, ""))


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")


def _split(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"Override {override!r} is not of the form section.field=value.")
    try:
        return key.strip(), yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of override {override!r} is not YAML: {error}.") from error


def _set(data: dict[str, Any], key: str, value: Any, override: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"Override {override!r}: {parent!r} is a value, not a section.")
        data = inner
    data[last] = value


# --- checking --------------------------------------------------------------------------------------------------------


def _validate(data: dict[str, Any], where: Mapping[str, str], source: str) -> Recipe:
    _refuse_unknown(data, Recipe, "", where, source)
    try:
        # Through JSON, because pydantic's strict mode then takes a list for a tuple, but still no text for a number.
        return Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(e, where, source) for e in error.errors())) from error


def _refuse_unknown(
    data: Mapping[str, Any], model: type[BaseModel], prefix: str, where: Mapping[str, str], source: str
) -> None:
    for key, value in data.items():
        name = f"{prefix}{key}"
        field = model.model_fields.get(str(key))
        if field is None:
            raise RecipeError(
                f"{_place(name, where, source)}: there is no key {name!r}.{_nearest(name, prefix, model)}"
            )
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            _refuse_unknown(value, inner, f"{name}.", where, source)


def all_keys() -> list[str]:
    """Every key a recipe may have, dotted."""
    keys = []
    for name, field in Recipe.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += [f"{name}.{f}" for f in inner.model_fields]
        else:
            keys.append(name)
    return keys


def _nearest(name: str, prefix: str, model: type[BaseModel]) -> str:
    siblings = [f"{prefix}{f}" for f in model.model_fields]
    leaf = name.rsplit(".", 1)[-1]
    near = [k for k in all_keys() if k.rsplit(".", 1)[-1] == leaf]  # the right name in the wrong section
    near = near or difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(name, all_keys(), n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Valid here: {', '.join(siblings)}."


def _explain(error: Any, where: Mapping[str, str], source: str) -> str:
    name = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if not name:
        return f"{source}: {message}."
    found = "" if error["type"] == "missing" else f" (found {error['input']!r})"
    return f"{_place(name, where, source)}: {name}: {message}{found}."


def _place(name: str, where: Mapping[str, str], source: str) -> str:
    while name not in where and "." in name:
        name = name.rsplit(".", 1)[0]
    return where.get(name, source)
