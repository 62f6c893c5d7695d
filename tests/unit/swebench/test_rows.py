"""SWE-bench rows, in the formats that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.swebench.judge.rows import RowError, image_name, parse_row, read_rows

ROW: dict[str, Any] = {
    "instance_id": "acme__tool-12",
    "repo": "acme/tool",
    "base_commit": "c0ffee",
    "patch": "diff --git a/a.py b/a.py\n",
    "test_patch": "",
    "problem_statement": "It fails.",
    "version": "1.2",
    "FAIL_TO_PASS": '["tests/test_a.py::test_one"]',
    "PASS_TO_PASS": ["tests/test_a.py::test_two"],
}


def test_an_older_row_gets_its_official_image_and_cannot_be_run():
    row = parse_row(ROW)
    assert row.image == "swebench/sweb.eval.x86_64.acme_1776_tool-12:latest"
    assert not row.runnable


def test_a_row_of_5x_says_itself_how_it_is_evaluated():
    row = parse_row({**ROW, "image": "my/image:1", "eval_script": "true", "log_parser": "parse_log_pytest"})
    assert (row.image, row.runnable, row.eval_type) == ("my/image:1", True, "pass_and_fail")


def test_a_row_of_swe_smith_needs_neither_commit_nor_test_patch():
    smith = {k: v for k, v in ROW.items() if k not in ("base_commit", "test_patch", "version")}
    assert parse_row({**smith, "image_name": "smith/acme"}).image == "smith/acme"


def test_an_image_built_here_keeps_its_underscores():
    assert image_name("A__b-1", namespace="") == "sweb.eval.x86_64.a__b-1:latest"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"FAIL_TO_PASS": "tests/test_a.py"}, ["FAIL_TO_PASS", "JSON list", "tests/test_a.py"]),
        ({"FAIL_TO_PASS": [1]}, ["FAIL_TO_PASS", "[1]", "list of names"]),
        ({"PASS_TO_PASS": None}, ["PASS_TO_PASS", "None", "list of names"]),
        ({"instance_id": ""}, ["instance_id", "not empty"]),
        ({"patch": 3}, ["patch", "int 3", "text"]),
        ({"eval_type": "odd"}, ["eval_type", "odd", "pass_and_fail"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(change: dict[str, Any], words: list[str]):
    with pytest.raises(RowError) as caught:
        parse_row({**ROW, **change}, "rows.jsonl, row 3")
    assert all(word in str(caught.value) for word in ["rows.jsonl, row 3", *words])


@given(st.lists(st.text(), max_size=5), st.booleans())
def test_lists_of_tests_are_read_as_lists_and_as_their_json(names: list[str], as_text: bool):
    value = json.dumps(names) if as_text else names
    assert parse_row({**ROW, "PASS_TO_PASS": value}).pass_to_pass == tuple(names)


def test_every_format_reads_the_same(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    rows = [{**ROW, "FAIL_TO_PASS": ["a"]}, {**ROW, "instance_id": "acme__tool-13", "FAIL_TO_PASS": ["b"]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "dataset_info.json").write_text("{}")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c" / "test-00000-of-00001.parquet")
    read = [read_rows(tmp_path / name) for name in ("a.jsonl", "b.json", "c")]
    assert read[0] == read[1] == read[2]
    assert [row.instance_id for row in read[0]] == ["acme__tool-12", "acme__tool-13"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["rows.jsonl", "line 1", "no JSON"]),
        ("[1]", ["rows.jsonl", "line 1", "object"]),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), ["row 2", "acme__tool-12", "given before"]),
        ("", ["no rows"]),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path, text: str, words: list[str]):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(RowError) as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert all(word in str(caught.value) for word in words)
