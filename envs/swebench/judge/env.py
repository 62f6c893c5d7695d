"""One submission, judged: reset lays the repository out, the only step applies a patch and runs the hidden tests.

A sandbox judges one submission, so nothing of another is in it. The reference solution is not in it either, so that a
patch cannot fetch it while it is tested. That the tests did not even begin is the judge's failure: it raises and the
episode is void. What comes after that (a crash, a hang, an end in mid-run) is what the patch did: not resolved.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

from envs.swebench.judge import testbed
from envs.swebench.judge.grading import START_MARKER, Verdict, grade, with_exit_code
from envs.swebench.judge.patches import files_of, judged
from envs.swebench.judge.rows import Row, parse_row
from rock.guest.env import Env, StepResult

TESTS_S = 300.0
MAX_LOG_BYTES = 16 << 20
# As the official harness tries them, in this order.
_APPLY = (
    ("git", "apply", "--verbose"),
    ("git", "apply", "--verbose", "--reject"),
    ("patch", "--batch", "--fuzz=5", "-p1", "-i"),
)
_PR_SET_DUMPABLE = 4


class JudgeEnv(Env):
    """Tasks: instance ids. Options of ``reset``: ``tests_s`` (seconds the tests may take)."""

    def __init__(self, data: str | Path | None = None, root: Path = testbed.ROOT, scratch: Path = Path("/tmp")) -> None:
        self._data = Path(data or os.environ.get("ROCK_ENV_DATA") or ".")
        self._root = root
        self._scratch = scratch
        self._row: Row | None = None
        self._tests_s = TESTS_S
        if data is None:  # in a sandbox: tested code runs as the same user, and must not look into this process
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Lay out the repository of ``task``. KeyError for an unknown one, ValueError for an unknown option."""
        if unknown := set(options) - {"tests_s"}:
            raise ValueError(f"Unknown option {', '.join(sorted(unknown))}; expected tests_s.")
        path = self._data / "rows" / f"{task}.json"
        if "/" in task or not path.is_file():
            raise KeyError(f"{task!r} is no task here; expected an instance id of the data set.")
        self._row = parse_row(json.loads(path.read_text(encoding="utf-8")), path.name)
        self._tests_s = float(options.get("tests_s", TESTS_S))
        testbed.lay_out(self._data, task, self._root)
        return f"Submit a patch for {task}.", {}

    def step(self, action: Any) -> StepResult:
        """Judge the patch ``action``; the episode is over then. Raises RuntimeError if the tests cannot be started."""
        if self._row is None:
            raise RuntimeError("No submission is awaited: call reset first.")
        row, self._row = self._row, None
        patch = action if isinstance(action, str) else ""
        counted = judged(patch, files_of(row.test_patch))
        info: dict[str, Any] = {"left_out": list(counted.left_out), "is_action_valid": bool(patch.strip())}
        if counted.patch.strip() and (reason := self._apply(counted.patch)):
            return f"not resolved: the patch does not apply: {reason}", 0.0, True, False, info | {"success": False}
        verdict = self._verdict(row, counted.patch)
        info |= {
            "success": verdict.resolved,
            "fail_to_pass": list(verdict.fail_to_pass),
            "pass_to_pass": list(verdict.pass_to_pass),
        }
        return str(verdict), float(verdict.resolved), True, False, info

    def _apply(self, patch: str) -> str:
        """Why it does not apply; empty if it did."""
        file = self._scratch / "patch.diff"
        file.write_text(patch, encoding="utf-8", errors="surrogateescape")
        reason = ""
        for attempt, argv in enumerate(_APPLY):
            if attempt:  # one that failed half-way leaves its half behind
                self._run(["bash", "-c", "git checkout -- . && git clean -fdq"])
            ran = self._run([*argv, str(file)])
            if ran.exit_code == 0:
                return ""
            reason = reason or ran.output.strip()[-500:]
        return reason

    def _verdict(self, row: Row, patch: str) -> Verdict:
        script = self._scratch / "eval.sh"
        script.write_text(with_exit_code(row.eval_script), encoding="utf-8")
        ran = testbed.run(["bash", str(script)], cwd=self._root, timeout_s=self._tests_s, max_bytes=MAX_LOG_BYTES)
        if START_MARKER not in ran.output:
            raise RuntimeError(f"{row.instance_id}: the tests could not be started: {ran.output.strip()[-1000:]}")
        return grade(row, patch, ran.output)

    def _run(self, argv: list[str]) -> testbed.Ran:
        return testbed.run(argv, cwd=self._root, timeout_s=60.0, max_bytes=1 << 20)
