"""Persistent shells, with every shell that this machine has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rock.guest import shell as shell_module
from rock.guest.errors import GuestError
from rock.guest.loop import Loop
from rock.guest.shell import Shell

SHELLS = [argv for argv in (["/bin/bash", "--norc", "--noprofile"], ["/bin/dash"]) if os.access(argv[0], os.X_OK)]


class Runner:
    """A shell driven in this process: the loop turns while a command runs."""

    def __init__(self, cwd: Path) -> None:
        self.loop = Loop(own_signals=False)
        self.shell = Shell(self.loop, "sh-1", str(cwd), {"GREETING": "hello"})

    def run(self, command: str, timeout_s: float = 20.0, limit: int = 1 << 20) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        self.shell.run(command, timeout_s, limit, answers.append)
        deadline = time.monotonic() + timeout_s + 10.0
        while not answers:
            assert time.monotonic() < deadline, f"no answer to {command!r}"
            self.loop.run_once(0.1)
        return answers[0]

    def close(self) -> None:
        self.shell.close()
        while self.shell.exit_code is None:
            self.loop.run_once(0.1)
        self.loop.close()


@pytest.fixture(params=SHELLS, ids=lambda argv: Path(argv[0]).name)
def runner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setattr(shell_module, "find_shell", lambda: request.param)
    made = Runner(tmp_path)
    yield made
    made.close()


def outcome(value: dict[str, Any]) -> tuple[int, str]:
    return value["exit_code"], value["output"]


def test_directory_variables_and_functions_stay(runner: Runner, tmp_path: Path) -> None:
    assert outcome(runner.run("echo $GREETING; pwd")) == (0, f"hello\n{tmp_path}\n")
    runner.run("mkdir sub; cd sub; A='x  y'; f() { echo f $1; return 4; }")
    assert outcome(runner.run('pwd; echo "$A"; f 1')) == (4, f"{tmp_path}/sub\nx  y\nf 1\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [("true", 0), ("false", 1), ("(exit 42)", 42), ("sh -c 'kill -9 $$'", 137), ("no-such-cmd", 127)],
)
def test_exit_codes_are_exact(runner: Runner, command: str, code: int) -> None:
    assert runner.run(command)["exit_code"] == code


def test_any_text_is_a_command(runner: Runner) -> None:
    assert outcome(runner.run("# only a comment")) == (0, "")
    assert outcome(runner.run("")) == (0, "")
    assert outcome(runner.run("echo 'it''s' \"$((1 + 1))\" # done")) == (0, "its 2\n")
    assert outcome(runner.run("cat <<EOF\na 'b' \"c\" $GREETING\nEOF")) == (0, "a 'b' \"c\" hello\n")
    assert outcome(runner.run("echo ünï → 中")) == (0, "ünï → 中\n")
    assert outcome(runner.run("-x"))[0] == 127
    with pytest.raises(GuestError):
        runner.run("a\0b")


def test_a_syntax_error_does_not_end_the_shell(runner: Runner) -> None:
    runner.run("A=kept")
    broken = runner.run("if then fi (")
    assert broken["exit_code"] != 0
    if not broken["shell_lost"]:
        assert outcome(runner.run("echo $A")) == (0, "kept\n")
    assert not broken["shell_lost"]


def test_commands_read_nothing_of_ours(runner: Runner) -> None:
    assert outcome(runner.run("cat; read x; echo after")) == (0, "after\n")
    assert outcome(runner.run("ls /proc/self/fd | grep -c '^9$'"))[1] == "0\n"


def test_much_output_neither_hangs_nor_grows(runner: Runner) -> None:
    assert len(runner.run("head -c 8000000 /dev/zero | tr '\\0' a", limit=16 << 20)["output"]) == 8_000_000
    short = runner.run("head -c 8000000 /dev/zero | tr '\\0' a", limit=100)
    assert short["truncated"]
    assert len(short["output"]) < 200


def test_a_long_command_gets_through(runner: Runner) -> None:
    text = "x" * 200_000
    assert len(runner.run(f"echo {text}")["output"]) == 200_001


def test_a_background_job_holds_nothing_up_and_lives_on(runner: Runner) -> None:
    assert runner.run("sleep 953 & echo $! > job")["duration_s"] < 5
    assert outcome(runner.run("kill -0 $(cat job) && echo alive")) == (0, "alive\n")


@pytest.mark.parametrize(
    "command",
    [
        "sleep 942; echo no > wrong",
        "while :; do :; done",
        "(sleep 942; echo no > wrong)",
        "sleep 942 | cat > /dev/null",
    ],
)
def test_after_a_time_out_the_shell_is_as_it_was_and_the_command_is_gone(
    runner: Runner, tmp_path: Path, command: str
) -> None:
    runner.run("mkdir here; cd here; export KEPT=1; sleep 931 & echo $! > ../job")
    late = runner.run(command, timeout_s=0.3)
    assert (late["timed_out"], late["exit_code"], late["shell_lost"]) == (True, 124, False)
    assert late["duration_s"] < 2.0
    assert outcome(runner.run("pwd; echo $KEPT; kill -0 $(cat ../job) && echo alive")) == (
        0,
        f"{tmp_path}/here\n1\nalive\n",
    )
    assert not (tmp_path / "here" / "wrong").exists()


def test_what_ignores_signals_is_killed_too(runner: Runner) -> None:
    late = runner.run("sh -c 'trap \"\" TERM INT HUP USR1; sleep 921; sleep 921'", timeout_s=0.3)
    assert (late["timed_out"], late["shell_lost"]) == (True, False)


def test_exit_ends_the_shell_and_says_so(runner: Runner) -> None:
    ended = runner.run("echo bye; exit 3")
    assert (outcome(ended), ended["shell_lost"]) == ((3, "bye\n"), True)
    with pytest.raises(GuestError, match="ended with code 3"):
        runner.run("true")


def test_one_command_at_a_time(runner: Runner) -> None:
    answers: list[Any] = []
    runner.shell.run("sleep 0.2", 5.0, 100, answers.append)
    with pytest.raises(GuestError, match="still running"):
        runner.shell.run("true", 5.0, 100, answers.append)
    while not answers:
        runner.loop.run_once(0.1)
