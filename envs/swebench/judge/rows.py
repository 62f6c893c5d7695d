"""Rows of SWE-bench and its relatives (Lite, Verified, Multilingual, Live, SWE-smith, SWE-rebench), read and checked.

Read are a ``.jsonl``, ``.json`` or ``.parquet`` file, or a directory of them as a Hugging Face data set is downloaded.
Nothing is guessed: a row without a field that it needs is refused with its place, the field and what was expected. Rows
of the older format carry no image, evaluation script or log parser; the image then has its official name, and the row
is not ``runnable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORMATS = (".jsonl", ".json", ".parquet")
_IMAGE_FIELDS = ("image", "image_name", "docker_image")
"""In this order: 5.x, SWE-smith and SWE-rebench, SWE-rebench's later releases."""
_EVAL_TYPES = ("pass_and_fail", "fail_only")


class RowError(ValueError):
    """The data set is not what it should be; the message says where, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Row:
    """One instance. Lists of tests are tuples of names as the row's log parser gives them."""

    instance_id: str
    repo: str
    problem_statement: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    patch: str
    """The reference solution; in SWE-smith's rows the patch that makes the bug."""
    test_patch: str
    base_commit: str
    version: str
    image: str
    eval_script: str
    log_parser: str
    eval_type: str

    @property
    def runnable(self) -> bool:
        """Whether it says itself how it is evaluated; older rows leave that to a release of ``swebench``."""
        return bool(self.eval_script and self.log_parser)


def image_name(instance_id: str, *, namespace: str = "swebench", arch: str = "x86_64", tag: str = "latest") -> str:
    """The official image of an instance. With a namespace ``__``, which registries refuse, becomes ``_1776_``; without
    one it is the name of an image built on this machine."""
    name = f"sweb.eval.{arch}.{instance_id.lower()}:{tag}"
    return f"{namespace}/{name}".replace("__", "_1776_") if namespace else name


def read_rows(source: Path) -> list[Row]:
    """Every row of a file, or of all files of a directory, in order. Raises RowError, also for an id given twice."""
    found: dict[str, Row] = {}
    for file in _files(source):
        for number, raw in enumerate(_raw(file), start=1):
            where = f"{file.name}, row {number}"
            row = parse_row(raw, where)
            if row.instance_id in found:
                raise RowError(f"{where}: instance_id {row.instance_id!r} was given before; expected each once.")
            found[row.instance_id] = row
    if not found:
        raise RowError(f"{source} holds no rows; expected at least one SWE-bench instance.")
    return list(found.values())


def parse_row(raw: Mapping[str, Any], where: str = "the row") -> Row:
    """A row from its fields. Raises RowError naming ``where``, the field, what was found and what was expected."""
    instance_id = _text(raw, "instance_id", where, required=True)
    where = f"{where} ({instance_id})"
    image = next((str(raw[field]) for field in _IMAGE_FIELDS if raw.get(field)), "") or image_name(instance_id)
    eval_type = _text(raw, "eval_type", where) or _EVAL_TYPES[0]
    if eval_type not in _EVAL_TYPES:
        raise RowError(f"{where}: eval_type is {eval_type!r}; expected one of {', '.join(_EVAL_TYPES)}.")
    return Row(
        instance_id=instance_id,
        repo=_text(raw, "repo", where, required=True),
        problem_statement=_text(raw, "problem_statement", where, required=True),
        fail_to_pass=_tests(raw, "FAIL_TO_PASS", where),
        pass_to_pass=_tests(raw, "PASS_TO_PASS", where),
        patch=_text(raw, "patch", where, required=True),
        test_patch=_text(raw, "test_patch", where),
        base_commit=_text(raw, "base_commit", where),
        version=_text(raw, "version", where),
        image=image,
        eval_script=_text(raw, "eval_script", where),
        log_parser=_text(raw, "log_parser", where),
        eval_type=eval_type,
    )


def _text(raw: Mapping[str, Any], field: str, where: str, *, required: bool = False) -> str:
    value = raw.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        found = "missing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise RowError(f"{where}: field {field!r} is {found}; expected text{' that is not empty' if required else ''}.")
    return value


def _tests(raw: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A list, or the JSON text of one: both are in use."""
    value = raw.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowError(f"{where}: field {field!r} is no JSON list: {value!r:.60} ({error}).") from error
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        found = "missing" if field not in raw else f"{value!r:.60}"
        raise RowError(f"{where}: field {field!r} is {found}; expected a list of names of tests, or its JSON text.")
    return tuple(value)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix not in _FORMATS:
            raise RowError(f"{source} ends in {source.suffix!r}; expected {', '.join(_FORMATS)}.")
        return [source]
    found = sorted(p for p in source.rglob("*") if p.suffix in _FORMATS and p.name not in _NOT_ROWS)
    if not found:
        raise RowError(f"{source} is no file or directory of rows; expected {', '.join(_FORMATS)} files.")
    return found


_NOT_ROWS = {"dataset_info.json", "dataset_dict.json", "state.json"}


def _raw(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    text = file.read_text(encoding="utf-8")
    for place, value in _json_values(file, text):
        if not isinstance(value, dict):
            raise RowError(f"{file.name}, {place}: found {value!r:.60}; expected an object with a row's fields.")
        yield value


def _json_values(file: Path, text: str) -> Iterable[tuple[str, Any]]:
    try:
        if file.suffix == ".json":
            whole = json.loads(text)
            rows = whole if isinstance(whole, list) else [whole]
            return [(f"row {i}", row) for i, row in enumerate(rows, start=1)]
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [(f"line {i}", _line(file, i, line)) for i, line in lines]
    except json.JSONDecodeError as error:
        raise RowError(f"{file.name} is no JSON: {error}.") from error


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(f"{file.name}, line {number} is no JSON: {error}.") from error


def _parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RowError(f"{file.name} needs pyarrow: pip install pyarrow, or convert it to .jsonl.") from error
    for batch in parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()
