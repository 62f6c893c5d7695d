"""Data sets as people have them become a bundle, or a word that says what is wrong where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.math.dataset import Columns, DataError, MathProblem, read
from envs.math.prepare import SAMPLE, prepare

ROOT = Path(__file__).parents[3]


def write(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_our_own_sample_has_problems_enough_that_the_checker_can_read(tmp_path: Path) -> None:
    tasks = prepare(tmp_path, SAMPLE, Columns())
    assert len(tasks["train"]) + len(tasks["heldout"]) >= 40
    questions = {p.question for problems in read(SAMPLE, Columns()).values() for p in problems}
    assert len(questions) == sum(map(len, tasks.values()))


def test_lines_of_a_file_that_names_no_split_are_divided(tmp_path: Path) -> None:
    file = write(tmp_path / "all.jsonl", [{"question": f"{i}?", "answer": i} for i in range(25)])
    found = read(file, Columns())
    assert {split: len(problems) for split, problems in found.items()} == {"train": 23, "heldout": 2}
    assert found["heldout"][0] == MathProblem("9?", "9")


def test_solutions_are_cut_down_to_their_final_answer(tmp_path: Path) -> None:
    rows = [
        {"problem": "a?", "solution": r"So it is $\boxed{\frac12}$."},
        {"problem": "b?", "solution": "5 + 5 = 10\n#### 10"},
    ]
    found = read(write(tmp_path / "train.jsonl", rows), Columns())["train"]
    assert [p.answer for p in found] == [r"\frac12", "10"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [{"question": "no", "q": "1+1?", "a": 2}])
    assert read(file, Columns("q", "a")) == {"test": [MathProblem("1+1?", "2")]}


def test_a_hugging_face_directory_is_read_in_its_parquet_and_its_arrow_form(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"question": ["1+1?", "2+2?"], "answer": ["2", "4"]})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet.write_table(table, tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "validation").mkdir(parents=True)
    file = str(tmp_path / "saved" / "validation" / "data-00000-of-00001.arrow")
    with arrow.OSFile(file, "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    both = [MathProblem("1+1?", "2"), MathProblem("2+2?", "4")]
    assert read(tmp_path / "hub", Columns()) == {"train": both}
    assert read(tmp_path / "saved", Columns()) == {"validation": both}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a?", "answer": 1}\n{"question": "b?"}', "line 2 has no column for the answer: .* question"),
        ('{"text": "a?", "answer": 1}', r"line 1 has no column for the question.*--question \(or MATH_QUESTION"),
        ("not json", "line 1 is no JSON"),
        ("[1, 2]", "line 1 is list, expected an object"),
        ('{"question": "", "answer": 1}', "line 1: column 'question' is ''"),
        ('{"question": "a?", "answer": null}', "line 1: column 'answer' is None"),
        ('{"question": "a?", "answer": " "}', "line 1: column 'answer' holds no final answer"),
        ("", "holds no rows"),
    ],
)
def test_a_malformed_data_set_is_refused_with_its_place(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read(file, Columns())


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere", Columns())
    with pytest.raises(DataError, match="holds no file that ends in"):
        read(tmp_path, Columns())
    (tmp_path / "x.csv").touch()
    with pytest.raises(DataError, match="is no data set"):
        read(tmp_path / "x.csv", Columns())
    (tmp_path / "train.parquet").write_text("no")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "train.parquet", Columns())


def test_problems_that_cannot_be_checked_are_left_out_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "a?", "answer": "2"}, {"question": "b?", "answer": "?"}]
    tasks = prepare(tmp_path, write(tmp_path / "train.jsonl", rows), Columns())
    assert tasks == {"train": ["train/000000"]}
    assert "left out 1 of 2" in capsys.readouterr().err


def test_the_command_takes_data_set_and_columns_from_the_environment_and_says_what_is_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", [{"q": "1+1?", "answer": 2}])
    argv = [sys.executable, "-m", "envs.math.prepare", "--out", str(tmp_path / "out")]
    environ = os.environ | {"MATH_DATA": str(file)}
    failed = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "its columns are q, answer" in failed.stderr
    assert "Traceback" not in failed.stderr
    subprocess.run(argv, check=True, cwd=ROOT, env=environ | {"MATH_QUESTION": "q"})
    assert json.loads((tmp_path / "out" / "tasks.json").read_text()) == {"test": ["test/000000"]}
    assert json.loads((tmp_path / "out" / "data" / "test.jsonl").read_text()) == {"question": "1+1?", "answer": "2"}
