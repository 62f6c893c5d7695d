"""What of a patch is judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.swebench.judge.patches import files_of, is_protected, judged

names = st.sampled_from(
    [
        "src/a.py",
        "pkg/b.py",
        "tests/test_a.py",
        "conftest.py",
        "pkg/conftest.py",
        "pytest.ini",
        "pytest.py",
        "README.md",
    ]
)


def section(path: str, line: str = "x = 1") -> str:
    return (
        f"diff --git a/{path} b/{path}\nindex 1..2 100644\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{line}\n+{line}0\n"
    )


@given(st.lists(names, max_size=6, unique=True))
def test_what_is_judged_is_the_patch_without_the_protected_files(paths: list[str]):
    result = judged("".join(map(section, paths)))
    assert result.patch == "".join(section(path) for path in paths if not is_protected(path))
    assert list(result.left_out) == [path for path in paths if is_protected(path)]


@given(st.text())
def test_no_text_is_too_odd_to_be_taken_apart(text: str):
    result = judged(text)
    assert result.left_out or result.patch == text


@pytest.mark.parametrize(
    "path",
    ["conftest.py", "a/conftest.py", "tests/data.json", "a/test/x.py", "test_x.py", "x_test.py", "setup.cfg",
     "pyproject.toml", "tox.ini", "sitecustomize.py", "a.pth", "_pytest/runner.py", "pytest.py", "./tests/a.py"],
)  # fmt: skip
def test_tests_and_what_runs_them_are_protected(path: str):
    assert is_protected(path)


@pytest.mark.parametrize("path", ["src/a.py", "contest.py", "attest/a.py", "latest.py", "setup.py"])
def test_code_is_not(path: str):
    assert not is_protected(path)


def test_files_of_the_hidden_tests_are_protected_wherever_they_are():
    assert judged(section("checks/one.py"), ["checks/one.py"]).patch == ""


def test_a_file_moved_into_place_of_a_test_is_left_out():
    moved = "diff --git a/src/a.py b/conftest.py\nsimilarity index 100%\nrename from src/a.py\nrename to conftest.py\n"
    assert judged(moved + section("src/b.py")).patch == section("src/b.py")


def test_patches_without_git_headers_are_taken_apart_too():
    plain = (
        "--- a/conftest.py\n+++ b/conftest.py\n@@ -0,0 +1 @@\n+x\n--- a/src/a.py\n+++ b/src/a.py\n@@ -1 +1 @@\n-a\n+b\n"
    )
    assert judged(plain).left_out == ("conftest.py",)
    assert files_of(judged(plain).patch) == ["src/a.py"]


def test_a_quoted_name_does_not_get_past():
    quoted = (
        'diff --git "a/tests/t\\303\\251.py" "b/tests/t\\303\\251.py"\n--- /dev/null\n+++ "b/tests/t\\303\\251.py"\n'
    )
    assert judged(quoted).patch == ""
