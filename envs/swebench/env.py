"""A repository with a bug, and a shell in it. The agent's side: it holds no tests of the solution, and gives no reward.

An action is a shell command, run by bash in /testbed; each one starts there anew, and what it leaves in files stays.
``submit`` ends the episode; so does the last of ``max_steps``, by truncation. Either way ``info["submission"]`` is the
difference between the repository and the commit it started from, and the environment's judge, which env.toml names,
turns that into a reward in a sandbox of its own. State lies in files, so that a lost sandbox goes on from a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from envs.swebench.judge import testbed
from rock.guest.env import SnapshotEnv, StepResult

SUBMIT = "submit"
MAX_STEPS = 30
COMMAND_S = 60.0
MAX_OUTPUT_BYTES = 8_000
MAX_PATCH_BYTES = 1 << 20
INSTRUCTION = """The repository is in /testbed, your working directory. Answer with one shell command at a time; each \
starts in /testbed. Mend the code, not the tests: what you change in tests does not count. When done answer: submit"""
_OPTIONS = {"max_steps", "command_s", "max_output_bytes", "instruction"}
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class SweEnv(SnapshotEnv):
    """Tasks: instance ids. Options of ``reset``: ``max_steps``, ``command_s``, ``max_output_bytes``,
    ``instruction``."""

    def __init__(self, data: str | Path | None = None, root: Path = testbed.ROOT) -> None:
        self._data = Path(data or os.environ.get("ROCK_ENV_DATA") or ".")
        self._root = root
        self._base = ""
        self._options: dict[str, Any] = {}
        self._steps = 0
        self._over = True

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Unpack the repository of ``task``. KeyError for an unknown one, ValueError for an unknown option."""
        instance = self._begin(task, options)
        testbed.unpack(self._data / "testbeds" / f"{task}.tar.gz", self._root)
        self._steps, self._over = 0, False
        instruction = str(options.get("instruction", INSTRUCTION))
        return f"{instance['statement']}\n\n{instruction}".strip(), {"repo": instance["repo"]}

    def step(self, action: Any) -> StepResult:
        """Run a command, or submit. Output beyond the limit loses its middle; a command that hangs is killed."""
        if self._over:
            raise RuntimeError("No instance is open: call reset first.")
        command = _plain(action if isinstance(action, str) else str(action))
        self._steps += 1
        if command == SUBMIT:
            return self._end("submitted", terminated=True)
        if not command:
            observation, valid = "no command was given", False
        else:
            observation, valid = self._shell(command), True
        if self._steps >= int(self._options.get("max_steps", MAX_STEPS)):
            return self._end(f"{observation}\n\nThat was the last step; the repository is submitted as it is.")
        return observation, 0.0, False, False, {"is_action_valid": valid}

    def checkpoint(self) -> dict[str, Any]:
        """Files are on the disk already. The digest of the changes shows that a copy of them is the same."""
        return {"steps": self._steps, "changes": hashlib.sha256(self._diff().encode()).hexdigest()}

    def restore(self, task: str, seed: int, options: dict[str, Any], state: Any) -> None:
        self._begin(task, options)
        self._steps, self._over = int(state["steps"]), False

    def _begin(self, task: str, options: dict[str, Any]) -> dict[str, str]:
        if unknown := set(options) - _OPTIONS:
            raise ValueError(f"Unknown option {', '.join(sorted(unknown))}; expected {', '.join(sorted(_OPTIONS))}.")
        path = self._data / "instances" / f"{task}.json"
        if "/" in task or not path.is_file():
            raise KeyError(f"{task!r} is no task here; expected an instance id of the data set.")
        instance: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        self._base, self._options = instance["base_commit"], dict(options)
        return instance

    def _shell(self, command: str) -> str:
        seconds = float(self._options.get("command_s", COMMAND_S))
        limit = int(self._options.get("max_output_bytes", MAX_OUTPUT_BYTES))
        ran = testbed.run(["bash", "-c", command], cwd=self._root, timeout_s=seconds, max_bytes=limit)
        if ran.timed_out:
            return f"{ran.output}\nkilled: it took longer than {seconds:g} s"
        return f"{ran.output.rstrip()}\nexit code {ran.exit_code}".lstrip("\n")

    def _end(self, observation: str, *, terminated: bool = False) -> StepResult:
        self._over = True
        info = {"submission": self._diff(), "success": False}
        return observation, 0.0, terminated, not terminated, info

    def _diff(self) -> str:
        """Everything that changed since the first commit, new files too, whatever was committed meanwhile.

        A repository that the agent broke, or a difference beyond 1 MiB, is an empty submission: the agent's doing.
        """
        script = f"git add -A && git -c core.fileMode=false diff --binary --cached {self._base}"
        # An index of its own: the agent's stays as it is.
        environ = f"export GIT_INDEX_FILE=$(mktemp -u); {script}; code=$?; rm -f $GIT_INDEX_FILE; exit $code"
        ran = testbed.run(["bash", "-c", environ], cwd=self._root, timeout_s=60.0, max_bytes=2 * MAX_PATCH_BYTES)
        whole = ran.exit_code == 0 and len(ran.output.encode()) <= MAX_PATCH_BYTES
        return ran.output if whole else ""


def _plain(action: str) -> str:
    """The command in a code block, where the action is one."""
    fenced = _FENCE.match(action)
    return (fenced.group(1) if fenced else action).strip()
