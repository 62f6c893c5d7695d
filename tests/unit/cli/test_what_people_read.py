"""Errors are one paragraph that ends with a way out; tables and ages are short; markup from elsewhere stays text."""

from __future__ import annotations

import errno

import pytest

from rock.cli import _output
from rock.cli._errors import explain, told_to_people
from rock.domain.errors import NotFound, RockError


def test_an_error_of_the_platform_reads_message_hint_and_last_lines_of_its_cause() -> None:
    text = explain(NotFound("No image x.", hint="Build it.", cause="\n".join(f"line {i}" for i in range(100))))
    assert text.startswith("No image x. Build it.\n")
    assert text.endswith("  line 99")
    assert "line 50" not in text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_disk_says_which_file_and_what_to_do(code: int) -> None:
    text = explain(OSError(code, "No space left on device", "/x/rock.db"))
    assert "/x/rock.db" in text
    assert "Free some space" in text


def test_a_bug_is_called_a_bug() -> None:
    assert "--debug" in explain(KeyError("x"))


def test_no_traceback_unless_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROCK_DEBUG", raising=False)
    for wanted in ("", "1"):
        monkeypatch.setenv("ROCK_DEBUG", wanted)
        with pytest.raises(SystemExit) as exit_, told_to_people():
            raise RockError("It broke.", hint="Mend it.")
        assert exit_.value.code == 1
        err = capsys.readouterr().err
        assert "Error: It broke. Mend it." in err
        assert ("Traceback" in err) == bool(wanted)


def test_an_interrupt_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, told_to_people():
        raise KeyboardInterrupt
    assert exit_.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert _output.duration(seconds) == text


def test_sizes_carry_their_unit() -> None:
    assert [_output.size(n) for n in (0, 1023, 1024, 512 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "512 MiB",
        "3 GiB",
    ]


def test_text_from_a_sandbox_cannot_colour_or_move_the_terminal() -> None:
    assert "\x1b" not in _output.escape("\x1b[2J")
    assert _output.escape("[red]x") == "\\[red]x"
