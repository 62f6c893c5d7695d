"""A shell made of single commands, each a program of its own in the sandbox. Pure.

Its directory is carried along to the next command, and only that: variables end with theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from dashboard import text
from rock.sdk import ExecRequest, ExecResult

MAX_OUTPUT_BYTES = 64 << 10
_MARK = "\x1ecwd "  # after what the command printed
_SCRIPT = r"""cd "$1" 2>/dev/null; eval "$2"; s=$?; printf '\036cwd %s' "$PWD"; exit $s"""


@dataclass(frozen=True, slots=True)
class Said:
    """What one command did. ``cwd``: where it was run."""

    cwd: str
    command: str
    result: ExecResult


def request(cwd: str, command: str, timeout_s: float) -> ExecRequest:
    """``cwd``: empty for where programs begin there."""
    argv = ("sh", "-c", _SCRIPT, "sh", cwd or ".", command)
    return ExecRequest(argv=argv, timeout_s=timeout_s, max_output_bytes=MAX_OUTPUT_BYTES)


def answered(cwd: str, command: str, result: ExecResult) -> tuple[Said, str]:
    """What it printed, and the directory for the next one: the same where it ended before it could say."""
    printed, mark, now = result.stdout.rpartition(_MARK)
    if not mark:
        return Said(cwd, command, result), cwd
    return Said(cwd, command, result.model_copy(update={"stdout": printed})), now or cwd


def transcript(lines: list[Said], timeout_s: float) -> str:
    """HTML of all commands so far, escaped."""
    return f'<pre class="rk-output rk-shell">{"".join(_one(said, timeout_s) for said in lines)}</pre>' if lines else ""


def _one(said: Said, timeout_s: float) -> str:
    result, notes = said.result, []
    if result.truncated:
        notes.append(f"output cut at {text.size(MAX_OUTPUT_BYTES)}")
    if result.timed_out:
        notes.append(f"killed after {text.duration(timeout_s)}")
    elif result.exit_code:
        notes.append(f"exit code {result.exit_code}")
    notes.append(text.duration(result.duration_s))
    tone = "bad" if result.exit_code or result.timed_out else "neutral"
    printed = "".join(
        f"<span{kind}>{escape(part)}</span>" + ("" if part.endswith("\n") else "\n")
        for kind, part in (("", result.stdout), (' class="rk-ink-bad"', result.stderr))
        if part
    )
    where = f'<span class="rk-note">{escape(said.cwd)}$</span> ' if said.cwd else '<span class="rk-note">$</span> '
    end = f'<span class="rk-note rk-ink-{tone}">{escape(" · ".join(notes))}</span>\n'
    return f"{where}<b>{escape(said.command)}</b>\n{printed}{end}"
