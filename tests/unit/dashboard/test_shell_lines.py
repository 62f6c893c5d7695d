"""A shell of single commands: what it asks for is run by a real sh here, as a sandbox would."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dashboard import shell_lines
from rock.sdk import ExecResult


def run(cwd: str, command: str) -> tuple[shell_lines.Said, str]:
    argv = shell_lines.request(cwd, command, 5.0).argv
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    result = ExecResult(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)
    return shell_lines.answered(cwd, command, result)


def test_the_directory_of_one_command_is_that_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    said, cwd = run(str(tmp_path), "cd 'a b'; echo \"it's here\"")
    assert (said.result.stdout, said.result.exit_code) == ("it's here\n", 0)
    assert cwd == str(tmp_path / "a b")
    assert run(cwd, "pwd")[0].result.stdout == f"{cwd}\n"


def test_the_exit_code_is_the_commands_own(tmp_path: Path) -> None:
    said, cwd = run(str(tmp_path), "false")
    assert (said.result.exit_code, said.result.stdout, cwd) == (1, "", str(tmp_path))
    said, cwd = run(str(tmp_path), "cd /; echo bye; exit 3")
    assert (said.result.exit_code, said.result.stdout) == (3, "bye\n")
    assert cwd == str(tmp_path), "a shell that was left says no more where it was"


def test_what_was_cut_off_keeps_the_directory() -> None:
    cut = ExecResult(exit_code=-9, stdout="a lot", stderr="", truncated=True, timed_out=True)
    said, cwd = shell_lines.answered("/tmp", "yes", cut)
    assert cwd == "/tmp"
    html = shell_lines.transcript([said], 60.0)
    assert "output cut at 64 KiB · killed after 60 s" in html


def test_the_transcript_is_escaped() -> None:
    result = ExecResult(exit_code=2, stdout="<b>out</b>", stderr="<i>err</i>")
    html = shell_lines.transcript([shell_lines.Said("/", "echo <u>", result)], 60.0)
    assert "&lt;b&gt;out" in html
    assert "&lt;i&gt;err" in html
    assert "echo &lt;u&gt;" in html
    assert "exit code 2" in html
