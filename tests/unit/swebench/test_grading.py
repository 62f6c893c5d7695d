"""Verdicts are those of the swebench package."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.swebench.judge.grading import END_MARKER, START_MARKER, grade, parsers, statuses, with_exit_code
from envs.swebench.judge.rows import RowError, parse_row

ROW = parse_row(
    {
        "instance_id": "a__b-1",
        "repo": "a/b",
        "patch": "x",
        "problem_statement": "x",
        "FAIL_TO_PASS": ["t.py::broken"],
        "PASS_TO_PASS": ["t.py::one", "t.py::two"],
        "eval_script": "true",
        "log_parser": "parse_log_pytest",
    }
)


def log(**of: str) -> str:
    lines = "\n".join(f"{status} t.py::{name}" for name, status in of.items())
    return f"+ : '{START_MARKER}'\n{lines}\n+ : '{END_MARKER}'\n>>>>> Test Exit Code: {int('FAILED' in lines)}\n"


def test_resolved_is_when_all_tests_pass():
    verdict = grade(ROW, "p", log(broken="PASSED", one="PASSED", two="PASSED"))
    assert verdict.resolved
    assert str(verdict) == "resolved: 1 of 1 failing tests pass, 2 of 2 passing tests still do"


@pytest.mark.parametrize(
    "of",
    [
        {"broken": "FAILED", "one": "PASSED", "two": "PASSED"},
        {"broken": "PASSED", "one": "FAILED", "two": "PASSED"},
        {"broken": "PASSED", "one": "PASSED"},
        {"broken": "SKIPPED", "one": "PASSED", "two": "PASSED"},
    ],
)
def test_one_test_that_fails_or_is_missing_is_enough(of: dict[str, str]):
    assert not grade(ROW, "p", log(**of)).resolved


def test_a_run_that_did_not_reach_its_end_resolves_nothing():
    cut = log(broken="PASSED", one="PASSED", two="PASSED").split(f"+ : '{END_MARKER}'")[0]
    verdict = grade(ROW, "p", cut)
    assert (verdict.resolved, verdict.parsed) == (False, False)
    assert "did not run to their end" in str(verdict)


def test_a_run_that_says_it_passed_and_exits_otherwise_is_not_believed():
    lying = log(broken="PASSED", one="PASSED", two="PASSED").replace("Code: 0", "Code: 1")
    assert not grade(ROW, "p", lying).resolved


@given(st.dictionaries(st.sampled_from(["broken", "one", "two"]), st.sampled_from(["PASSED", "FAILED", "ERROR"])))
def test_nothing_but_three_passes_resolves(of: dict[str, str]):
    assert grade(ROW, "p", log(**of)).resolved == (list(of.values()).count("PASSED") == 3)


def test_an_unknown_parser_is_named_with_those_that_there_are():
    with pytest.raises(RowError, match=r"parse_log_odd.*parse_log_pytest"):
        grade(replace(ROW, log_parser="parse_log_odd"), "p", log())
    with pytest.raises(RowError, match="parse_log_odd"):
        statuses("", "parse_log_odd")


def test_the_official_parsers_are_all_there():
    assert {"parse_log_pytest", "parse_log_django", "parse_log_cargo", "parse_log_gotest"} <= set(parsers())


def test_the_script_tells_the_exit_code_of_the_tests_and_not_of_what_follows():
    script = f": '{START_MARKER}'\nfalse\n: '{END_MARKER}'\ntrue\n"
    done = subprocess.run(["bash", "-c", with_exit_code(script)], capture_output=True, text=True, check=True)
    assert ">>>>> Test Exit Code: 1" in done.stdout


def test_a_script_without_markers_stays_as_it_is():
    assert with_exit_code("echo hello\n") == "echo hello\n"


def test_a_row_written_for_the_judge_reads_back():
    fields: dict[str, Any] = json.loads(json.dumps(asdict(ROW)))
    fields["FAIL_TO_PASS"], fields["PASS_TO_PASS"] = fields.pop("fail_to_pass"), fields.pop("pass_to_pass")
    assert parse_row(fields) == ROW
