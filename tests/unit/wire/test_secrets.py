"""A secret comes from its variable, else from the file that a variable names; what is wrong with that file is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from rock.domain.errors import InvalidRequest
from rock.wire.secrets import secret


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ROCK_KEY", raising=False)
    monkeypatch.setenv("ROCK_KEY_FILE", str(tmp_path / "key"))
    return tmp_path / "key"


def test_a_file_gives_the_secret_without_its_line_end(file: Path) -> None:
    file.write_text("rk_secret\n")
    assert secret("ROCK_KEY") == "rk_secret"


def test_the_variable_itself_comes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCK_KEY", "rk_direct")
    assert secret("ROCK_KEY") == "rk_direct"


def test_an_empty_variable_is_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("rk_secret")
    monkeypatch.setenv("ROCK_KEY", "")
    assert secret("ROCK_KEY") == "rk_secret"


def test_neither_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROCK_KEY", raising=False)
    monkeypatch.setenv("ROCK_KEY_FILE", "")
    assert secret("ROCK_KEY") == ""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_text(" \n"), "is empty"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is no text"),
    ],
)
def test_a_file_that_is_no_secret_is_an_error_that_names_it(file: Path, make, said) -> None:
    make(file)
    with pytest.raises(InvalidRequest, match=said) as raised:
        secret("ROCK_KEY")
    assert str(file) in str(raised.value)
