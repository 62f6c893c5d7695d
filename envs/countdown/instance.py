"""A Countdown instance, and the strict judgement of an answer to it.

A task's id says everything: ``each:3,7,12=87`` (use each number exactly once) or ``any:3,7,12=87`` (each at most once).
So the environment needs no data, and any instance can be played, not only those of the splits.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from envs.countdown.expression import ExpressionError, evaluate

RULES = {"each": "each number exactly once", "any": "each number at most once"}
MAX_NUMBERS = 8

_TASK = re.compile(r"(each|any):([1-9][0-9]{0,3}(?:,[1-9][0-9]{0,3})+)=([1-9][0-9]{0,5})", re.ASCII)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LABELLED = re.compile(r"answer\s*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Instance:
    numbers: tuple[int, ...]
    target: int
    rule: str = "each"

    @property
    def task(self) -> str:
        return f"{self.rule}:{','.join(map(str, self.numbers))}={self.target}"

    @property
    def key(self) -> tuple[str, tuple[int, ...], int]:
        """Equal for instances that differ in the order of their numbers only."""
        return self.rule, tuple(sorted(self.numbers)), self.target

    @property
    def question(self) -> str:
        return (
            f"Numbers: {', '.join(map(str, self.numbers))}. Target: {self.target}.\n"
            f"Reach the target with + - * / and parentheses, using {RULES[self.rule]} and no other number. "
            "Work in small steps and end with `answer:` and one expression."
        )

    @classmethod
    def of(cls, task: str) -> Instance:
        """The instance of a task's id. Raises KeyError for what is none."""
        found = _TASK.fullmatch(task)
        numbers = tuple(int(n) for n in found[2].split(",")) if found else ()
        if found is None or len(numbers) > MAX_NUMBERS:
            raise KeyError(
                f"{task!r} is no Countdown task; expected something like 'each:3,7,12=87' or 'any:3,7,12=87', with 2 "
                f"to {MAX_NUMBERS} numbers from 1 to 9999 and a target from 1 to 999999"
            )
        return cls(numbers, int(found[3]), found[1])


@dataclass(frozen=True, slots=True)
class Verdict:
    """``parses``: there is an expression. ``allowed``: it uses the numbers as the rule says. ``reason``: for people."""

    correct: bool
    parses: bool
    allowed: bool
    reason: str

    @property
    def form(self) -> float:
        """How far the form was right, whatever the value: 0 no expression, ½ wrong numbers, 1 right ones."""
        return (self.parses + self.allowed) / 2


def answer_in(text: str) -> str:
    """The part of a response that is its answer: in the last <answer> tag, else after the last ``answer:``, else the
    last line that is not empty."""
    if tagged := _TAGGED.findall(text):
        return str(tagged[-1]).strip()
    if labels := list(_LABELLED.finditer(text)):
        return text[labels[-1].end() :].strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def judge(instance: Instance, response: str) -> Verdict:
    """Never raises, whatever the response."""
    answer = answer_in(response)
    try:
        found = evaluate(answer)
    except ExpressionError as error:
        return Verdict(False, False, False, f"no expression: {error}")
    given, used = Counter(instance.numbers), Counter(found.literals)
    if extra := used - given:
        return Verdict(False, True, False, f"used but not given (so often): {_listed(extra)}")
    if instance.rule == "each" and (missing := given - used):
        return Verdict(False, True, False, f"not used: {_listed(missing)}")
    if found.value != instance.target:
        value = found.value if len(str(found.value)) <= 40 else float(found.value)
        return Verdict(False, True, True, f"the expression is {value}, not {instance.target}")
    return Verdict(True, True, True, "correct")


def _listed(numbers: Counter[int]) -> str:
    return ", ".join(map(str, sorted(numbers.elements())))
