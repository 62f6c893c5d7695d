"""Countdown as an environment of the platform: reach a target from given numbers. One turn, standard library only.

The observation is the question, the action the whole response, of which the answer counts (``instance.answer_in``). The
reward is 1 if the answer is an expression with the target's value that uses the numbers as the task says, else 0.
``info["form"]`` says how far the form was right (0, ½, 1); it is no part of the reward. An instance is deterministic:
the seed changes nothing. No options.
"""

from __future__ import annotations

import random
from typing import Any

from envs.countdown.instance import Instance, judge
from envs.countdown.solver import worked_solution
from rock.guest.env import Env, StepResult

TRIES = 1


class CountdownEnv(Env):
    """Tasks: ``each:3,7,12=87`` (each number exactly once), ``any:3,7,12=87`` (at most once)."""

    def __init__(self) -> None:
        self._instance: Instance | None = None
        self._over = False

    def reset(self, task: str, seed: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Ask the question of ``task``. KeyError for what is no task, ValueError for options: there are none."""
        if options:
            raise ValueError(f"Countdown has no options; found {', '.join(sorted(options))}.")
        self._instance, self._over = Instance.of(task), False
        return self._instance.question, {"numbers": list(self._instance.numbers), "target": self._instance.target}

    def step(self, action: Any) -> StepResult:
        """Judge the response ``action``; the episode is over then."""
        instance = self._asked()
        if self._over:
            raise RuntimeError(f"The episode of {instance.task!r} is over; call reset before the next step.")
        self._over = True
        verdict = judge(instance, action if isinstance(action, str) else str(action))
        info = {
            "success": verdict.correct,
            "form": verdict.form,
            "is_action_valid": verdict.parses,
            "reason": verdict.reason,
        }
        return verdict.reason, float(verdict.correct), True, False, info

    def call(self, method: str, args: dict[str, Any]) -> Any:
        """``expert_plan``: a list with one response that solves the present task in small steps.

        ``tries``: at most so many failed attempts come before the one that succeeds, as many as ``seed`` and task have
        it. Empty if the only solutions lead through fractions or negative numbers.
        """
        if method != "expert_plan":
            raise LookupError(f"Unknown method {method!r}; expected expert_plan.")
        return self._expert_plan(**args)

    def _expert_plan(self, tries: int = TRIES, seed: int = 0) -> list[str]:
        if type(tries) is not int or tries < 0:
            raise ValueError(f"tries is {tries!r}; expected a whole number from 0.")
        instance = self._asked()
        rng = random.Random(f"{instance.task}/{seed}")
        use_all = instance.rule == "each"
        text = worked_solution(instance.numbers, instance.target, use_all=use_all, tries=tries, rng=rng)
        return [text] if text else []

    def _asked(self) -> Instance:
        if self._instance is None:
            raise RuntimeError("No episode: call reset first.")
        return self._instance
