"""Arithmetic as an environment of the platform: one question, one whole number. One turn, standard library only.

The action is the whole response; what stands after its last ``answer:`` counts, else its last line. The reward is 1 if
that is the number and nothing else, in digits, else 0. The seed changes nothing. No options.
"""

from __future__ import annotations

import re
from typing import Any

from envs.arithmetic.problems import Problem
from rock.guest.env import Env, StepResult

_LABEL = re.compile(r"answer\s*:", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]{1,30}", re.ASCII)


def answer_in(response: str) -> str:
    """After the last ``answer:``, else the last line that is not empty."""
    labels = list(_LABEL.finditer(response))
    if labels:
        return response[labels[-1].end() :].strip()
    return next((line.strip() for line in reversed(response.splitlines()) if line.strip()), "")


class ArithmeticEnv(Env):
    """Tasks: ``sum:17,25``, ``mod:123,7``, ``reverse:4821`` and so on, see ``problems.KINDS``."""

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._over = False

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Ask the question of ``task``. KeyError for what is no task, ValueError for options: there are none."""
        if options:
            raise ValueError(f"Arithmetic has no options; found {', '.join(sorted(options))}.")
        self._problem, self._over = Problem.of(task), False
        return self._problem.question, {"kind": self._problem.kind}

    def step(self, action: Any) -> StepResult:
        """Judge the response ``action``; the episode is over then. ``is_action_valid``: whether it is a number."""
        problem = self._asked()
        if self._over:
            raise RuntimeError(f"The episode of {problem.task!r} is over; call reset before the next step.")
        self._over = True
        answer = answer_in(action if isinstance(action, str) else str(action))
        valid = _NUMBER.fullmatch(answer) is not None
        correct = valid and int(answer) == problem.answer
        observation = "correct" if correct else "wrong" if valid else "no number"
        return observation, float(correct), True, False, {"success": correct, "is_action_valid": valid}

    def call(self, method: str, args: dict[str, Any]) -> Any:
        """``expert_plan``: a list with one response that works the present task out. Takes no arguments."""
        if method != "expert_plan":
            raise LookupError(f"Unknown method {method!r}; expected expert_plan.")
        if args:
            raise ValueError(f"expert_plan takes no arguments; found {', '.join(sorted(args))}.")
        return [self._asked().worked]

    def _asked(self) -> Problem:
        if self._problem is None:
            raise RuntimeError("No episode: call reset first.")
        return self._problem
