"""A repository with a bug, and a shell in it. The agent's side: it holds no tests of the solution, and gives no reward.

An action is a shell command, run by bash in /testbed; each one starts there anew, and what it leaves in files stays.
``submit`` ends the episode; so does the last of ``max_steps``, by truncation. Either way ``info["submission"]`` is the
difference between the repository and what it was at the start, and the environment's judge, which env.toml names,
turns that into a reward in a sandbox of its own. State lies in files, so that a lost sandbox goes on from a snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
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
# An index of its own: the agent's stays as it is. Begun from it, files that did not change are not read again.
_INDEXED = """index=$(mktemp -u); export GIT_INDEX_FILE=$index; cp .git/index $index 2>/dev/null
git add -A 2>/dev/null && {then}; code=$?; rm -f $index; exit $code"""
_START = "refs/rock/start"
# Undoes an earlier episode in this sandbox, and hides the branches and tags by which the solution may be found.
_AS_NEW = f"""set -e
if git rev-parse -q --verify {_START} > /dev/null; then git read-tree -u --reset {_START} && git clean -fdq; fi
git remote | while read -r name; do git remote remove "$name"; done
head=$(git symbolic-ref -q HEAD || true)
git for-each-ref --format='%(refname)' | grep -v -e "^$head$" -e "^{_START}$" | sed 's/^/delete /' |
  git update-ref --stdin
git reflog expire --expire=now --all
rm -f .git/FETCH_HEAD .git/ORIG_HEAD"""
_OPTIONS = {"max_steps", "command_s", "max_output_bytes", "instruction"}
_MAX_COMMAND_BYTES = 128 * 1024 - 1
"""What Linux lets one argument of a program be."""
_FENCE = re.compile(r"\A\s*```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class SweEnv(SnapshotEnv):
    """Tasks: instance ids. Options of ``reset``: ``max_steps``, ``command_s``, ``max_output_bytes``,
    ``instruction``."""

    def __init__(self, data: str | Path | None = None, root: Path = testbed.ROOT) -> None:
        self._data = Path(data or os.environ.get("ROCK_ENV_DATA") or ".")
        self._root = root
        self._base = ""
        self._environ: Mapping[str, str] | None = None
        self._options: dict[str, Any] = {}
        self._steps = 0
        self._over = True

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Lay out the repository of ``task``. KeyError for an unknown one, ValueError for an unknown option."""
        instance = self._begin(task, options)
        own = testbed.lay_out(self._data, task, self._root)
        self._base = self._started(own=own)
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
        refused = _refused(command)
        observation, valid = refused or self._shell(command), not refused
        if self._steps >= int(self._options.get("max_steps", MAX_STEPS)):
            return self._end(f"{observation}\n\nThat was the last step; the repository is submitted as it is.")
        return observation, 0.0, False, False, {"is_action_valid": valid}

    def checkpoint(self) -> dict[str, Any]:
        """Files are on the disk already. The digest of the changes shows that a copy of them is the same."""
        changes = hashlib.sha256(self._diff().encode()).hexdigest()
        return {"steps": self._steps, "base": self._base, "changes": changes}

    def restore(self, task: str, seed: int, options: dict[str, Any], state: Any) -> None:
        self._begin(task, options)
        self._steps, self._base, self._over = int(state["steps"]), str(state["base"]), False

    def _begin(self, task: str, options: dict[str, Any]) -> dict[str, str]:
        if unknown := set(options) - _OPTIONS:
            raise ValueError(f"Unknown option {', '.join(sorted(unknown))}; expected {', '.join(sorted(_OPTIONS))}.")
        path = self._data / "instances" / f"{task}.json"
        if "/" in task or not path.is_file():
            raise KeyError(f"{task!r} is no task here; expected an instance id of the data set.")
        instance: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        self._options = dict(options)
        self._environ = testbed.conda_environ()
        return instance

    def _shell(self, command: str) -> str:
        seconds = float(self._options.get("command_s", COMMAND_S))
        limit = int(self._options.get("max_output_bytes", MAX_OUTPUT_BYTES))
        ran = self._run(command, seconds, limit)
        if ran.timed_out:
            return f"{ran.output}\nkilled: it took longer than {seconds:g} s"
        return f"{ran.output.rstrip()}\nexit code {ran.exit_code}".lstrip("\n")

    def _end(self, observation: str, *, terminated: bool = False) -> StepResult:
        self._over = True
        info = {"submission": self._diff(), "success": False}
        return observation, 0.0, terminated, not terminated, info

    def _started(self, *, own: bool) -> str:
        """The files as they are, ignored ones left out, as a tree that the submission is compared with: an image's
        ``own`` repository may hold changes and files that were never committed, and may have been played in before.
        Raises RuntimeError."""
        note = f'tree=$(git write-tree) && git update-ref {_START} "$tree" && echo "$tree"'
        scripts = [_AS_NEW, _INDEXED.format(then=note)] if own else [_INDEXED.format(then="git write-tree")]
        for script in scripts:
            ran = self._run(script, 120.0, 1 << 16)
            if ran.exit_code != 0:
                raise RuntimeError(f"the repository could not be laid out: {ran.output[-500:]}")
        return ran.output.strip().splitlines()[-1]

    def _diff(self) -> str:
        """Everything that changed since the reset, new files too, whatever was committed meanwhile.

        A repository that the agent broke, or a difference beyond 1 MiB, is an empty submission: the agent's doing.
        """
        diff = f"git -c core.fileMode=false diff --binary --cached {self._base}"
        ran = self._run(_INDEXED.format(then=diff), 60.0, 2 * MAX_PATCH_BYTES)
        whole = ran.exit_code == 0 and len(ran.output.encode()) <= MAX_PATCH_BYTES
        return ran.output if whole else ""

    def _run(self, script: str, timeout_s: float, max_bytes: int) -> testbed.Ran:
        return testbed.run(
            ["bash", "-c", script], cwd=self._root, timeout_s=timeout_s, max_bytes=max_bytes, environ=self._environ
        )


def _plain(action: str) -> str:
    """The command in a code block, where the action is one."""
    fenced = _FENCE.match(action)
    return (fenced.group(1) if fenced else action).strip()


def _refused(command: str) -> str:
    """Why no program can be given this; empty if one can. The agent's mistake, not the environment's."""
    try:
        given = command.encode()
    except UnicodeEncodeError:
        return "no command: half a character is in it"
    if not given:
        return "no command was given"
    if b"\0" in given:
        return "no command: a null character is in it"
    if len(given) > _MAX_COMMAND_BYTES:
        return f"no command: it is longer than {_MAX_COMMAND_BYTES} bytes"
    return ""
