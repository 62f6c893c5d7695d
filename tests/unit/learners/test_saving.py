"""A file of a checkpoint is the old one, the new one, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from roll_core.learners.saving import replacing


def test_a_file_is_there_once_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "made" / "state.pt"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    assert not partial.exists()


def _fill_the_disk(path: Path) -> None:
    path.write_text("half of it")
    raise OSError(28, "No space left on device")


def test_who_fails_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"), replacing(path) as partial:
        _fill_the_disk(partial)
    assert path.read_text() == "old"
