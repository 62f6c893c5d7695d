"""Data sets of questions with answers, in the shapes that people have them in, to problems by split.

Read are: a ``.jsonl`` or ``.json`` file; a ``.parquet`` file; a directory with such files, as a Hugging Face data set
that was downloaded (``train.jsonl``, ``data/train-00000-of-00002.parquet``) or saved by ``save_to_disk`` (Arrow). A
file's name tells the split; rows of one that tells none are divided, every tenth to ``heldout``. Nothing is guessed
about a row: what has not the columns asked for is refused with file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.math.answers import final_answer

QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "solution")
_FORMATS = (".jsonl", ".json", ".parquet", ".arrow")
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "heldout": "heldout",
}


class DataError(ValueError):
    """The data set is not what it should be; the message says where, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class MathProblem:
    question: str
    answer: str
    """The final answer alone."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns; empty: the first of the usual ones that the first row has."""

    question: str = ""
    answer: str = ""

    def of(self, row: dict[str, Any], where: str) -> Columns:
        return Columns(
            self._one(self.question, QUESTION_COLUMNS, "question", row, where),
            self._one(self.answer, ANSWER_COLUMNS, "answer", row, where),
        )

    @staticmethod
    def _one(given: str, usual: tuple[str, ...], what: str, row: dict[str, Any], where: str) -> str:
        found = next((name for name in ((given,) if given else usual) if name in row), None)
        if found is None:
            expected = repr(given) if given else f"one of {', '.join(usual)}"
            raise DataError(
                f"{where} has no column for the {what}: its columns are {', '.join(row) or 'none'}, expected "
                f"{expected}. Name it with --{what} (or MATH_{what.upper()} when building the environment)."
            )
        return found


def read(source: Path, columns: Columns) -> dict[str, list[MathProblem]]:
    """Problems by split. Raises DataError."""
    found: dict[str, list[MathProblem]] = {}
    for file in _files(source):
        split = _split_of(file, source)
        problems = [_problem(row, columns, where) for row, where in _rows(file)]
        if split:
            found.setdefault(split, []).extend(problems)
        else:
            found.setdefault("train", []).extend(p for i, p in enumerate(problems) if i % 10 != 9)
            found.setdefault("heldout", []).extend(p for i, p in enumerate(problems) if i % 10 == 9)
    if not any(found.values()):
        raise DataError(f"{source} holds no rows.")
    return {split: problems for split, problems in found.items() if problems}


def _files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix not in _FORMATS:
            raise DataError(f"{source} is no data set: expected a file that ends in {', '.join(_FORMATS)}.")
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; expected a file ({', '.join(_FORMATS)}) or a directory of them.")
    inside = sorted(path for path in source.rglob("*") if path.suffix in _FORMATS and path.is_file())
    # What a Hugging Face data set says about itself is no data.
    described = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
    inside = [path for path in inside if path.name not in described and not path.name.startswith((".", "cache-"))]
    if not inside:
        raise DataError(f"{source} holds no file that ends in {', '.join(_FORMATS)}.")
    return inside


def _split_of(file: Path, source: Path) -> str:
    """From the file's name, else from its folder's inside the data set; empty if neither tells one."""
    folders = file.relative_to(source).parts[:-1] if source.is_dir() else ()
    for name in (file.stem, *reversed(folders)):
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _problem(row: Any, columns: Columns, where: str) -> MathProblem:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, expected an object with a question and an answer.")
    named = columns.of(row, where)
    question, answer = row[named.question], row[named.answer]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: column {named.question!r} is {question!r}, expected a text that asks something.")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"{where}: column {named.answer!r} is {answer!r}, expected a text or a number.")
    final = final_answer(str(answer))
    if not final:
        raise DataError(f"{where}: column {named.answer!r} holds no final answer: {str(answer)[:80]!r}.")
    return MathProblem(question.strip(), final)


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Rows with where they stand, for people."""
    if file.suffix in (".parquet", ".arrow"):
        yield from ((row, f"{file}, row {i}") for i, row in enumerate(_table(file), 1))
    elif file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json(line, f"{file}, line {number}"), f"{file}, line {number}"
    else:
        whole = _json(file.read_text(encoding="utf-8"), str(file))
        rows = next((v for v in whole.values() if isinstance(v, list)), None) if isinstance(whole, dict) else whole
        if not isinstance(rows, list):
            raise DataError(f"{file} is {type(whole).__name__}, expected a list of objects.")
        yield from ((row, f"{file}, row {i}") for i, row in enumerate(rows, 1))


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}") from error


def _table(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{file} needs pyarrow to be read: `pip install pyarrow`, or convert it to .jsonl.") from error
    try:
        if file.suffix == ".parquet":
            rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
            return rows
        with arrow.memory_map(str(file)) as source:
            try:
                return list(arrow.ipc.open_stream(source).read_all().to_pylist())
            except arrow.ArrowInvalid:
                return list(arrow.ipc.open_file(source).read_all().to_pylist())
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
