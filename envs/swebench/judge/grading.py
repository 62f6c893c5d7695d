"""SWE-bench's own log parsers and rules of resolution, without the rest of that package.

``swebench.harness`` imports data sets, Docker and cloud clients as it is loaded (490 MB of requirements). Its grading
needs the standard library alone, so the package is entered without running its ``__init__``. Nothing of the rules is
written anew here: a verdict is ``swebench.harness.grading.get_eval_report``'s.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from envs.swebench.judge.rows import Row, RowError

START_MARKER = ">>>>> Start Test Output"
END_MARKER = ">>>>> End Test Output"
_EXIT_CODE_VARIABLE = "SWEBENCH_TEST_EXIT_CODE"
_EXIT_CODE_MARKER = ">>>>> Test Exit Code"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many of the tests that must pass did, and whether that resolves the instance."""

    resolved: bool
    parsed: bool
    """Whether the log could be understood; if not, nothing counts as passed."""
    fail_to_pass: tuple[int, int]
    """Passed, of how many."""
    pass_to_pass: tuple[int, int]

    def __str__(self) -> str:
        if not self.parsed:
            return "not resolved: the tests did not run to their end"
        counts = "{} of {} failing tests pass, {} of {} passing tests still do".format(
            *self.fail_to_pass, *self.pass_to_pass
        )
        return f"{'resolved' if self.resolved else 'not resolved'}: {counts}"


def grading() -> ModuleType:
    """The module ``swebench.harness.grading``. Raises RowError when the package is not installed."""
    if "swebench.harness" not in sys.modules:
        found = importlib.util.find_spec("swebench")
        if found is None or not found.submodule_search_locations:
            raise RowError("The package swebench is needed for grading: pip install --no-deps 'swebench>=5.0'.")
        package = ModuleType("swebench.harness")
        package.__path__ = [str(Path(place) / "harness") for place in found.submodule_search_locations]
        sys.modules["swebench.harness"] = package
    return importlib.import_module("swebench.harness.grading")


def parsers() -> dict[str, Any]:
    """Log parsers by name."""
    grading()
    registry: dict[str, Any] = importlib.import_module("swebench.harness.log_parsers").PARSER_REGISTRY
    return registry


def statuses(log: str, log_parser: str) -> dict[str, str]:
    """Status by test, of a log without markers. Raises RowError for a parser that does not exist."""
    if log_parser not in parsers():
        raise RowError(f"log_parser {log_parser!r} is unknown; expected one of {', '.join(sorted(parsers()))}.")
    found: dict[str, str] = parsers()[log_parser](log, None)
    return found


def grade(row: Row, patch: str, log: str) -> Verdict:
    """The verdict on the output of ``eval_script``. Raises RowError for an unknown parser."""
    if row.log_parser not in parsers():
        raise RowError(f"{row.instance_id}: log_parser {row.log_parser!r} is none of {', '.join(sorted(parsers()))}.")
    spec = importlib.import_module("swebench.types").TestSpec(
        instance_id=row.instance_id,
        image=row.image,
        eval_script_list=[],
        repo=row.repo,
        version=row.version,
        FAIL_TO_PASS=list(row.fail_to_pass),
        PASS_TO_PASS=list(row.pass_to_pass),
        log_parser=row.log_parser,
        eval_type=row.eval_type,
    )
    prediction = {"instance_id": row.instance_id, "model_patch": patch, "model_name_or_path": "agent"}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(log)
        file.flush()
        report = grading().get_eval_report(spec, prediction, file.name, include_tests_status=True)[row.instance_id]
    tests = report.get("tests_status")
    return Verdict(
        resolved=bool(report["resolved"]),
        parsed=tests is not None,
        fail_to_pass=_count(tests, "FAIL_TO_PASS", len(row.fail_to_pass)),
        pass_to_pass=_count(tests, "PASS_TO_PASS", len(row.pass_to_pass)),
    )


def _count(tests: Any, kind: str, total: int) -> tuple[int, int]:
    return (len(tests[kind]["success"]), total) if tests else (0, total)


def with_exit_code(eval_script: str) -> str:
    """The script as the official harness runs it: the tests' own exit status is told after the end marker."""
    lines = eval_script.strip().split("\n")
    for i, line in enumerate(lines):
        if END_MARKER in line:
            told = f'echo "{_EXIT_CODE_MARKER}: ${_EXIT_CODE_VARIABLE}"'
            lines[i : i + 1] = [f"{_EXIT_CODE_VARIABLE}=$?", line, told]
            break
    return "\n".join(lines) + "\n"
