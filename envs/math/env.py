"""Mathematics as an environment of the platform: a question, a response, an answer that is checked. One turn.

Problems come from whatever data set the bundle was built with (``prepare``), or from the few of our own. The action is
the whole response; ``answers.final_answer`` says where its answer stands. The reward is 1 if ``math-verify`` finds it
equal to the reference, else 0. **If the checker itself breaks, step raises and the episode is void**: never reward 0.
The seed changes nothing. Options of ``reset``: ``instruction`` (text after the question; by default it asks for a box).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from envs.math.answers import final_answer
from envs.math.verifier import Verifier
from rock.guest.env import Env, StepResult

INSTRUCTION = "Reason step by step and put the final answer into \\boxed{}."
OBSERVATIONS = {
    "right": "correct",
    "wrong": "wrong",
    "no_answer": "no answer could be read",
    "costly": "the answer takes too long to check",
}


class MathEnv(Env):
    """Tasks: ``<split>/<number>``, such as ``train/000012``."""

    def __init__(self, data: str | Path | None = None, verifier: Verifier | None = None) -> None:
        self._data = Path(data or os.environ.get("ROCK_ENV_DATA") or ".")
        self._verifier = verifier or Verifier()
        self._offsets: dict[str, list[int]] = {}
        self._task = self._answer = ""
        self._over = True

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Ask the question of ``task``. KeyError for an unknown one, ValueError for an unknown option."""
        if unknown := set(options) - {"instruction"}:
            raise ValueError(f"Unknown option {', '.join(sorted(unknown))}; expected instruction.")
        problem = self._problem(task)
        instruction = str(options.get("instruction", INSTRUCTION))
        self._task, self._answer, self._over = task, problem["answer"], False
        return f"{problem['question']}\n{instruction}".strip(), {}

    def step(self, action: Any) -> StepResult:
        """Judge the response ``action``; the episode is over then. Raises VerifierBroken when that is not possible."""
        if self._over:
            raise RuntimeError("No question is open: call reset first.")
        answer = final_answer(action if isinstance(action, str) else str(action))
        verdict = self._verifier.verdict(self._answer, answer) if answer else "no_answer"
        if verdict == "bad_gold":
            raise ValueError(f"The reference answer {self._answer!r} of {self._task} cannot be read by the checker.")
        self._over = True
        right = verdict == "right"
        info = {"success": right, "is_action_valid": verdict in ("right", "wrong"), "answer": answer}
        return OBSERVATIONS[verdict], float(right), True, False, info

    def call(self, method: str, args: dict[str, Any]) -> Any:
        """``expert_plan``: a list with the reference answer as a response, which no reasoning leads to."""
        if method != "expert_plan":
            raise LookupError(f"Unknown method {method!r}; expected expert_plan.")
        if self._over:
            raise RuntimeError("No question is open: call reset first.")
        return [f"\\boxed{{{self._answer}}}"]

    def close(self) -> None:
        self._verifier.close()

    def _problem(self, task: str) -> dict[str, str]:
        split, _, number = task.partition("/")
        offsets = self._index(split)
        if not (number.isascii() and number.isdigit() and int(number) < len(offsets)):
            raise KeyError(f"{task!r} is no task here; expected something like 'train/000012' of {self._splits()}.")
        with (self._data / f"{split}.jsonl").open("rb") as file:
            file.seek(offsets[int(number)])
            problem: dict[str, str] = json.loads(file.readline())
        return problem

    def _index(self, split: str) -> list[int]:
        """Where each problem begins in the split's file: a data set may be larger than memory should hold."""
        if split not in self._splits():
            return []
        if split not in self._offsets:
            offsets, at = [], 0
            with (self._data / f"{split}.jsonl").open("rb") as file:
                for line in file:
                    offsets.append(at)
                    at += len(line)
            self._offsets[split] = offsets
        return self._offsets[split]

    def _splits(self) -> list[str]:
        return sorted(path.stem for path in self._data.glob("*.jsonl"))
